"""Tables and plots of docs/cost-model.md, from the JSON that benchmarks/cost_model.py writes.

python benchmarks/cost_document.py benchmarks/results/cost_model.json docs/cost-model.md
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

TITLES = {
    "rl_steps": "RL iterations",
    "training": "training",
    "decode": "inference",
    "memory": "memory",
}
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#9c6b4e", "#a463f2", "#97bbf5", "#9498a0")

Results = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the plots beside the page, and its generated sections anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args(arguments)
    plt.switch_backend("svg")
    plt.rcParams["svg.hashsalt"] = "rlinf-graph"  # the same file from the same figures
    results = json.loads(given.results.read_text("utf-8"))
    stem = given.page.with_suffix("")
    scatter(results, stem.with_name(f"{stem.name}-predicted.svg"))
    errors(results, stem.with_name(f"{stem.name}-errors.svg"))
    page = given.page.read_text("utf-8")
    for name, lines in {
        "summary": summary(results),
        "constants": constants(results),
        "models": by_model(results),
        "pairs": pairs(results),
    }.items():
        page = section(page, name, lines)
    given.page.write_text(page, "utf-8")


def section(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with what stands between a section's marks replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    made = "\n".join([begin, "", *lines, "", end])
    page, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: made, page, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"the page has {count} sections {name}")
    return page


def summary(results: Results) -> list[str]:
    """How far off each kind is."""
    lines = [
        "| kind | rows | left out | median error | 90th percentile | in 80 % intervals | shipped |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, made in results.items():
        held = made["leave_one_model_out"]
        lines.append(
            f"| {TITLES[kind]} | {held['rows']} | {len(made['left_out'])} "
            f"| {held['median_error']:.1%} | {held['p90_error']:.1%} | {held['coverage_80']:.0%} "
            f"| {made['median_error']:.1%} / {made['p90_error']:.1%} |"
        )
    return lines


def constants(results: Results) -> list[str]:
    """All fitted constants."""
    lines = ["| kind | constant | value | possible | meaning |", "|---|---|---|---|---|"]
    for kind, made in results.items():
        for one in made["constants"]:
            lines.append(
                f"| {TITLES[kind]} | `{one['name']}` | {one['shipped']:.3g} "
                f"| {one['low']:g} to {one['high']:g} | {one['meaning']} |"
            )
    return lines


def by_model(results: Results) -> list[str]:
    """Errors of each kind and model that was left out."""
    lines = ["| kind | model | rows | median error | largest |", "|---|---|---|---|---|"]
    for kind, made in results.items():
        for model, found in sorted(_by_model(made).items()):
            off = [abs(one["error"]) for one in found]
            lines.append(
                f"| {TITLES[kind]} | {model} | {len(off)} | {np.median(off):.1%} | {max(off):.1%} |"
            )
    return lines


def pairs(results: Results) -> list[str]:
    """Synchronous against asynchronous rows."""
    lines = [
        "| synchronous | asynchronous | measured | predicted | call |",
        "|---|---|---|---|---|",
    ]
    made = results["rl_steps"]["leave_one_model_out"]["pairs"]
    for one in made["pairs"] if made else ():
        lines.append(
            f"| {one['synchronous']} | {one['asynchronous']} | {one['measured']:.2f} "
            f"| {one['predicted']:.2f} | {one['call']} |"
        )
    return lines


def scatter(results: Results, path: Path) -> None:
    """Predicted against published, each model predicted without its own rows."""
    figure, axes = plt.subplots(1, len(results), figsize=(4.2 * len(results), 4.4))
    for place, (kind, made) in zip(np.atleast_1d(axes), results.items(), strict=True):
        for color, (model, found) in zip(
            _colors(made), sorted(_by_model(made).items()), strict=True
        ):
            x, y = ([one[key] for one in found] for key in ("measured", "predicted"))
            place.loglog(x, y, "o", color=color, ms=4, alpha=0.8, label=model.rpartition("/")[2])
        every = [one[key] for one in _predictions(made) for key in ("measured", "predicted")]
        ends = np.asarray([min(every) / 1.3, max(every) * 1.3])
        place.plot(ends, ends, color="#888", lw=1)
        place.fill_between(ends, ends / 1.2, ends * 1.2, color="#888", alpha=0.15, lw=0)
        place.set(xlim=ends, ylim=ends, xlabel=f"published, {_unit(made)}", title=TITLES[kind])
        place.set_aspect("equal")
        place.legend(fontsize=6, loc="upper left", frameon=False)
    np.atleast_1d(axes)[0].set_ylabel("predicted")
    _save(figure, path)


def errors(results: Results, path: Path) -> None:
    """Relative errors by kind and model."""
    groups = [
        (f"{model.rpartition('/')[2]} ({len(found)})", kind, [one["error"] for one in found])
        for kind, made in results.items()
        for model, found in sorted(_by_model(made).items())
    ]
    figure, place = plt.subplots(figsize=(9, 0.24 * len(groups) + 1.2))
    colors = dict(zip(results, COLORS, strict=False))
    seen: set[str] = set()
    for row, (_label, kind, off) in enumerate(reversed(groups)):
        title = None if kind in seen else TITLES[kind]
        seen.add(kind)
        shown = np.clip(off, -1, 1.5)
        place.plot(shown, [row] * len(off), "o", color=colors[kind], ms=4, alpha=0.6, label=title)
        place.plot([np.median(shown)], [row], "|", color="black", ms=12)
    place.axvline(0, color="#888", lw=1)
    place.axvspan(-0.2, 0.2, color="#888", alpha=0.12, lw=0)
    place.set_yticks(range(len(groups)), [label for label, _, _ in reversed(groups)], fontsize=7)
    place.set(
        xlabel="relative error (a bar is the median; beyond 150 % at the edge)",
        ylim=(-1, len(groups)),
    )
    place.xaxis.set_major_formatter(PercentFormatter(1))
    place.legend(fontsize=8, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _predictions(made: Results) -> list[dict[str, Any]]:
    return made["leave_one_model_out"]["predictions"]


def _by_model(made: Results) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in _predictions(made):
        found[one["model"]].append(one)
    return found


def _colors(made: Results) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(_by_model(made)))]


def _unit(made: Results) -> str:
    return _predictions(made)[0]["unit"]


if __name__ == "__main__":
    main()
