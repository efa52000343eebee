"""Tables and plots of docs/cost-model.md, from the JSON that benchmarks/cost_model.py writes.

python benchmarks/cost_document.py benchmarks/results/cost_model.json docs/cost-model.md
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

TITLES = {
    "rl_steps": "RL iterations",
    "training": "training",
    "decode": "inference",
    "memory": "memory",
}
COLORS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#9c6b4e", "#a463f2", "#ff8ab7", "#6e7681")
MARKERS = "o^s"
WORD = re.compile(r"[A-Za-z][\w-]+")
WEAKEST = 6
"""Groups of a kind in the table of the weakest."""

EDGE = 1.5
"""Relative error beyond which a point of the plot is drawn at its edge."""

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
        "weakest": weakest(results),
        "left out": left_out(results),
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
    lines = ["| kind | model | rows | median error | largest | tau |", "|---|---|---|---|---|---|"]
    for kind, made in results.items():
        taus = made["leave_one_model_out"]["tau"]
        for model, found in sorted(_by_model(made).items()):
            off = [abs(one["error"]) for one in found]
            tau = f"{taus[model]:.2f}" if model in taus else ""
            lines.append(
                f"| {TITLES[kind]} | {model} | {len(off)} | {np.median(off):.1%} | {max(off):.1%} "
                f"| {tau} |"
            )
    return lines


def weakest(results: Results) -> list[str]:
    """The groups of rows of each kind that are furthest off."""
    lines = ["| kind | model | rows of | rows | median | furthest |", "|---|---|---|---|---|---|"]
    for kind, made in results.items():
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for one in _predictions(made):
            words = [word for word in WORD.findall(one["what"]) if len(word) > 3 or word.isupper()]
            groups[one["model"], " ".join(words)].append(one)
        found = sorted(groups.items(), key=lambda pair: -abs(_median(pair[1])))
        for (model, words), rows in found[:WEAKEST]:
            furthest = max(rows, key=lambda one: abs(one["error"]))
            lines.append(
                f"| {TITLES[kind]} | {model} | {words} | {len(rows)} | {_median(rows):+.0%} "
                f"| {furthest['error']:+.0%}, `{furthest['row']}` |"
            )
    return lines


def _median(rows: Sequence[Results]) -> float:
    return float(np.median([one["error"] for one in rows]))


def left_out(results: Results) -> list[str]:
    """Rows that are not predicted, by reason."""
    lines = ["| kind | reason | rows |", "|---|---|---|"]
    for kind, made in results.items():
        for reason, count in Counter(out["reason"] for out in made["left_out"]).most_common():
            lines.append(f"| {TITLES[kind]} | {reason} | {count} |")
    return lines


def pairs(results: Results) -> list[str]:
    """Synchronous against asynchronous rows."""
    lines = [
        "| synchronous | asynchronous | measured | predicted | call |",
        "|---|---|---|---|---|",
    ]
    for one in results["rl_steps"]["leave_one_model_out"]["pairs"]["pairs"]:
        lines.append(
            f"| {one['synchronous']} | {one['asynchronous']} | {one['measured']:.2f} "
            f"| {one['predicted']:.2f} | {one['call']} |"
        )
    return lines


def scatter(results: Results, path: Path) -> None:
    """Predicted against published, each model predicted without its own rows."""
    columns = 2 if len(results) > 1 else 1
    rows = -(-len(results) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 4.1 * rows), layout="constrained", squeeze=False
    )
    shown = styles(results)
    for place, (kind, made) in zip(grid.flat, results.items(), strict=False):
        for model, found in sorted(_by_model(made).items()):
            x, y = ([one[key] for one in found] for key in ("measured", "predicted"))
            color, marker = shown[model]
            place.plot(x, y, marker, color=color, ms=4.5, alpha=0.75, mew=0)
        _diagonal(place, _predictions(made))
        place.set(title=TITLES[kind], xlabel=f"published, {_unit(made)}", ylabel="predicted")
    for place in grid.flat[len(results) :]:
        place.remove()
    names = [
        plt.Line2D([], [], ls="", marker=marker, color=color, ms=6, mew=0, label=_short(model))
        for model, (color, marker) in shown.items()
    ]
    figure.legend(
        handles=names,
        loc="outside lower center",
        ncols=min(3, len(names)),
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


def styles(results: Results) -> dict[str, tuple[str, str]]:
    """A color and a marker for each model, the same for all kinds."""
    models = sorted({m for made in results.values() for m in _by_model(made)}, key=_short)
    many = [(color, marker) for marker in MARKERS for color in COLORS]
    return {model: many[i % len(many)] for i, model in enumerate(models)}


def _diagonal(place: Axes, predictions: Sequence[Results]) -> None:
    """Equal axes around all points, on logarithmic scales where they are far apart."""
    every = [one[key] for one in predictions for key in ("measured", "predicted")]
    far = max(every) > 5 * min(every)
    ends = (min(every) / 1.4, max(every) * 1.4) if far else (min(every) * 0.9, max(every) * 1.1)
    line = np.geomspace(*ends, 50) if far else np.linspace(*ends, 50)
    place.plot(line, line, color="#888", lw=1, zorder=0)
    place.fill_between(line, line / 1.2, line * 1.2, color="#888", alpha=0.15, lw=0, zorder=0)
    scale = "log" if far else "linear"
    place.set(xscale=scale, yscale=scale, xlim=ends, ylim=ends)
    place.set_aspect("equal")


def errors(results: Results, path: Path) -> None:
    """Relative errors by kind and model."""
    groups = [
        (f"{_short(model)} ({len(found)})", kind, [one["error"] for one in found])
        for kind, made in results.items()
        for model, found in sorted(_by_model(made).items(), key=lambda pair: _short(pair[0]))
    ]
    figure, place = plt.subplots(figsize=(8.5, 0.24 * len(groups) + 1.6), layout="constrained")
    colors = dict(zip(TITLES, COLORS, strict=False))
    for row, (_label, kind, off) in enumerate(groups):
        shown = np.clip(off, -1, EDGE)
        place.plot(shown, [row] * len(off), "o", color=colors[kind], ms=4.5, alpha=0.6, mew=0)
        place.plot([np.median(shown)], [row], "|", color="black", ms=11, mew=1.5)
        if row and groups[row - 1][1] != kind:
            place.axhline(row - 0.5, color="#bbb", lw=0.8)
    place.axvline(0, color="#888", lw=1, zorder=0)
    place.axvspan(-0.2, 0.2, color="#888", alpha=0.12, lw=0, zorder=0)
    place.set_yticks(range(len(groups)), [label for label, _, _ in groups], fontsize=8)
    place.set(xlabel="predicted by published, less 1", ylim=(len(groups) - 0.5, -0.5))
    place.set_xlim(-1.05, EDGE + 0.05)
    place.xaxis.set_major_formatter(PercentFormatter(1))
    names = [
        plt.Line2D([], [], ls="", marker="o", color=colors[kind], mew=0, label=TITLES[kind])
        for kind in results
    ]
    names.append(plt.Line2D([], [], ls="", marker="|", color="black", ms=11, label="median"))
    figure.legend(
        handles=names, loc="outside upper center", ncols=len(names), fontsize=9, frameon=False
    )
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _short(model: str) -> str:
    """A model's name without its organisation and number format."""
    return model.rpartition("/")[2].removesuffix("-BF16").removeprefix("NVIDIA-")


def _predictions(made: Results) -> list[dict[str, Any]]:
    return made["leave_one_model_out"]["predictions"]


def _by_model(made: Results) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in _predictions(made):
        found[one["model"]].append(one)
    return found


def _unit(made: Results) -> str:
    return _predictions(made)[0]["unit"]


if __name__ == "__main__":
    main()
