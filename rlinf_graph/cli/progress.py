"""A live line for a run: iterations, time left, reward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.cli.api import Report
from rlinf_graph.ir.plan import Plan

SHOWN = (
    ("reward/mean", "reward"),
    ("train/loss", "loss"),
    ("rollout/response_tokens", "tokens"),
)
LINES = 10
"""Where there is no terminal: a line after every tenth of the run."""


@contextmanager
def progress(name: str, iterations: int) -> Iterator[Report]:
    """A report function that keeps the line up to date until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(name, iterations)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[shown]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=iterations, shown="")

        def report(record: IterationRecord, seconds: float) -> None:
            bar.update(task, advance=1, shown=_shown(record, seconds))

        yield report


def pace(plan: Plan, seconds: float, backend: str) -> str:
    """The median iteration, beside the estimate where the run did what that is of."""
    devices = len({device for leaf in plan.leaves() for device in leaf.devices})
    if backend == "local" and devices > 1:
        return f"median {seconds:.3g} s, one process doing the work of {devices} devices"
    shown = f", estimated {plan.estimate.iteration_s:.3g} s" if plan.estimate else ""
    return f"median {seconds:.3g} s{shown}"


def _lines(name: str, iterations: int) -> Report:
    every = max(1, iterations // LINES)

    def report(record: IterationRecord, seconds: float) -> None:
        if (record.iteration + 1) % every == 0:
            shown = _shown(record, seconds)
            print(f"{name} {record.iteration + 1}/{iterations}  {shown}", flush=True)

    return report


def _shown(record: IterationRecord, seconds: float) -> str:
    found = [(label, record.metrics[key]) for key, label in SHOWN if key in record.metrics]
    return "  ".join([*(f"{label} {value:.3f}" for label, value in found), f"{seconds:.2f} s"])
