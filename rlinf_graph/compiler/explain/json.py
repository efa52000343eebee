"""The report as versioned JSON, for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, cast

from rlinf_graph.compiler.explain.report import FORMAT, Report

DIGITS = 9
"""Significant digits: enough, and the same on every machine."""


def render_json(report: Report) -> str:
    """Seconds, bytes, counts and intervals under the names of `report.Report`."""
    data = {"format": FORMAT, **asdict(report), "samples_per_s": report.samples_per_s}
    data["interval"] = report.interval
    data["rows"] = [{**asdict(row), "interval": row.interval} for row in report.rows]
    return json.dumps(_rounded(data), indent=1, ensure_ascii=False) + "\n"


def _rounded(data: Any) -> Any:
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}")
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in cast("dict[str, Any]", data).items()}
    if isinstance(data, list | tuple):
        return [_rounded(value) for value in cast("list[Any]", data)]
    return data
