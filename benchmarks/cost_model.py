"""The cost model against published measurements: predictions, errors, fitted constants.

python benchmarks/cost_model.py [--rl-steps F] [--training F] [--decode F] [--recipes F ...]
    [--only KIND] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validation import decode, memory, rl_steps, training
from validation.figures import summary
from validation.fitting import (
    Prediction,
    fit,
    leave_one_model_out,
    predict_all,
    with_intervals,
)
from validation.kind import Kind
from validation.rows import DATA, Row, read_rows

from rlinf_graph.compiler.cost.fitted import parameters


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, predict, print."""
    given = _parser().parse_args(arguments)
    recipes = [row for path in given.recipes for row in read_rows(path)]
    trained = read_rows(given.training)
    work: list[tuple[Kind, list[Row]]] = [
        (rl_steps.kind(recipes), read_rows(given.rl_steps)),
        (training.KIND, trained),
        (decode.KIND, read_rows(given.decode)),
        (memory.KIND, trained),
    ]
    results: dict[str, Any] = {}
    for kind, rows in work:
        if given.only in (None, kind.name):
            results[kind.name] = judge(kind, rows)
            print("\n".join(text(kind, results[kind.name])))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", "utf-8")


def judge(kind: Kind, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything the JSON says of a kind."""
    cases, left_out = kind.cases(rows)
    known = cases if rows == kind.rows() else kind.cases(kind.rows())[0]
    constants = fit(kind.predict, cases, kind.shipped) if cases else kind.shipped
    shipped = with_intervals(predict_all(kind.predict, cases, kind.shipped), kind.width)
    held_out = leave_one_model_out(kind.predict, cases, kind.shipped, known)
    held_out = with_intervals(held_out, kind.width)
    return {
        **summary(shipped),
        "rows": len(cases),
        "left_out": [{"row": out.row.name, "reason": out.reason} for out in left_out],
        "pairs": kind.pairs(shipped) if kind.pairs else None,
        "leave_one_model_out": {
            **summary(held_out),
            "pairs": kind.pairs(held_out) if kind.pairs else None,
            "predictions": [_prediction(kind, one) for one in held_out],
        },
        "constants": [
            {
                "name": made.name,
                "shipped": made.value,
                "fitted": again.value,
                "low": made.low,
                "high": made.high,
                "meaning": made.meaning,
            }
            for made, again in zip(parameters(kind.shipped), parameters(constants), strict=True)
        ],
        "predictions": [_prediction(kind, one) for one in shipped],
    }


def text(kind: Kind, result: dict[str, Any]) -> list[str]:
    """The lines that are printed of a kind."""
    held_out = result["leave_one_model_out"]
    lines = ["", f"## {kind.name} ({kind.unit}), each model predicted without its own rows"]
    for one in held_out["predictions"]:
        low, high = one["interval"]
        lines.append(
            f"{one['row']:<32} {one['model']:<34.34} {one['what']:<44.44} "
            f"{one['predicted']:>10.4g} [{low:.4g}, {high:.4g}] measured {one['measured']:.4g} "
            f"{one['error']:+7.1%}  {one['provenance']}"
            + (f"; {'; '.join(one['assumed'])}" if one["assumed"] else "")
        )
    for reason in sorted({out["reason"] for out in result["left_out"]}):
        rows = [out["row"] for out in result["left_out"] if out["reason"] == reason]
        lines.append(f"left out: {reason}: {len(rows)} rows")
    for made in result["constants"]:
        lines.append(
            f"constant {made['name']} = {made['shipped']:.4g} (fitted again {made['fitted']:.4g}; "
            f"possible {made['low']:g} to {made['high']:g}): {made['meaning']}"
        )
    for name, figures in (("shipped", result), ("leave one model out", held_out)):
        if not figures["rows"]:
            lines.append(f"{name}: no rows")
            continue
        lines.append(
            f"{name}: {figures['rows']} rows, median error {figures['median_error']:.1%}, "
            f"90th percentile {figures['p90_error']:.1%}, within 80 % intervals "
            f"{figures['coverage_80']:.0%}, tau {_taus(figures['tau'])}"
            + (f", pairs {figures['pairs']['counts']}" if figures["pairs"] else "")
        )
    return lines


def _taus(by_model: dict[str, float]) -> str:
    return ", ".join(f"{model} {value:.2f}" for model, value in by_model.items()) or "none"


def _prediction(kind: Kind, one: Prediction) -> dict[str, Any]:
    return {
        "row": one.case.row.name,
        "model": one.case.model,
        "what": one.case.what,
        "predicted": one.predicted,
        "interval": list(one.interval),
        "measured": one.case.measured,
        "unit": kind.unit,
        "error": one.error,
        "provenance": one.case.provenance,
        "assumed": list(one.case.assumed),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, file in (
        ("--rl-steps", "published_rl_steps.csv"),
        ("--training", "published_training.csv"),
        ("--decode", "published_decode.csv"),
    ):
        parser.add_argument(name, type=Path, default=DATA / file)
    recipes = [DATA / "nemo_rl_perf_recipes.csv"]
    parser.add_argument("--recipes", type=Path, nargs="*", default=recipes)
    parser.add_argument("--only", choices=["rl_steps", "training", "decode", "memory"])
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
