"""Items per second of a channel, beside what Ray offers for the same.

    python benchmarks/channel.py [--quick] [--rounds N] [--only WORD] [--json OUT]

One item for each public put and get. In a round every way moves the same kind of items once, so
that what else the machine does meets all of them; medians over the rounds, with the range. Each way
moves as many items as take it about `--seconds`, which a first run that is not counted tells.

`queue` is `ray.util.queue.Queue` with a call for each item, `queue-batched` with its batched calls
(64 items, or 4 MB), `calls` are calls of an actor with 16 in flight, `store` is a put into the
object store and a get of the reference in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.queue import Empty, Queue

from rlinf_graph.backends.ray.channel.channel import Channel

SIZES = {"1KB": 1 << 10, "64KB": 1 << 16, "1MB": 1 << 20, "16MB": 1 << 24}
WAYS = ("channel", "queue", "queue-batched", "calls", "store")
IN_FLIGHT = 16
PAIRS = 4
STABLE = 1.3
"""By how much a rate may grow with four times as many items."""
TARGETS = {
    "1KB channel / queue": 10.0,
    "1KB channel / queue-batched": 2.0,
    "1KB channel / calls": 2.0,
    "1MB channel / queue": 2.0,
    "1MB channel / calls": 1.0,
    "16MB channel / store": 0.8,
    "1KB 4x4 / 1x1": 0.5,
}


@dataclass(frozen=True)
class Case:
    """Items of a size and a kind, and how many producers and as many consumers."""

    size: str
    kind: str
    pairs: int = 1

    @property
    def name(self) -> str:
        """As printed."""
        return f"{self.pairs}x{self.pairs} {self.size} {self.kind}"

    @property
    def batch(self) -> int:
        """Items of a batched call."""
        return max(1, min(64, (4 << 20) // SIZES[self.size]))


@dataclass
class Result:
    """Items per second of each repetition."""

    case: str
    way: str
    items: int
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Items per second."""
        return statistics.median(self.rates)


def item_of(case: Case) -> Any:
    """An item; the same values for all ways."""
    values = np.arange(SIZES[case.size] // 4, dtype=np.float32)
    if case.kind == "numpy":
        return values
    import torch  # which takes seconds, in each process

    return torch.from_numpy(values)


@ray.remote(num_cpus=0)
class End:
    """A producer or a consumer, or both for the object store."""

    def __init__(self, channel: Channel, queue: Queue) -> None:
        """`channel` and `queue` are what items pass through."""
        self.through = {"channel": channel, "queue": queue, "queue-batched": queue}
        self.got = 0

    def prepare(self, case: Case) -> None:
        """Make the items of a case."""
        self.item, self.batch = item_of(case), case.batch
        self.items = [item_of(case) for _ in range(case.batch)]

    def accept(self, item: Any) -> int:
        """A call with an item."""
        self.got += 1
        return len(item)

    def put(self, way: str, items: int, other: Any = None) -> None:
        """Send items, in calls to the other end."""
        to: Any = self.through.get(way, other)
        if way == "channel":
            for _ in range(items):
                to.put(self.item)
            to.flush()
        elif way == "queue":
            for _ in range(items):
                to.put(self.item)
        elif way == "queue-batched":
            for _ in range(items // self.batch):
                to.put_nowait_batch(self.items)
        else:
            flying: deque[Any] = deque()
            for _ in range(items):
                if len(flying) == IN_FLIGHT:
                    ray.get(flying.popleft())
                flying.append(to.accept.remote(self.item))
            ray.get(list(flying))

    def get(self, way: str, items: int) -> None:
        """Receive items."""
        source: Any = self.through[way]
        if way == "queue-batched":
            left = items // self.batch
            while left:
                try:
                    left -= len(source.get_nowait_batch(self.batch)) == self.batch
                except Empty:
                    time.sleep(0.0005)
        else:
            for _ in range(items):
                source.get()

    def store(self, items: int) -> None:
        """Write and read."""
        for _ in range(items):
            ray.get(ray.put(self.item))


class Bench:
    """The processes, which serve all cases one after the other."""

    def __init__(self) -> None:
        self.channel, self.queue = Channel.create(), Queue()
        self.ends = [End.remote(self.channel, self.queue) for _ in range(2 * PAIRS)]

    def begin(self, case: Case) -> None:
        """A case's processes make its items."""
        self.case = case
        self.producers = self.ends[: case.pairs]
        self.consumers = self.ends[PAIRS : PAIRS + case.pairs]
        ray.get([end.prepare.remote(case) for end in self.producers + self.consumers])

    def seconds(self, way: str, items: int) -> float:
        """Time until all `items` of each producer have come."""
        begin = time.perf_counter()
        if way == "store":
            ray.get([end.store.remote(items) for end in self.producers])
        elif way == "calls":
            pairs = zip(self.producers, self.consumers, strict=True)
            ray.get([one.put.remote(way, items, other) for one, other in pairs])
        else:
            sent = [end.put.remote(way, items) for end in self.producers]
            ray.get(sent + [end.get.remote(way, items) for end in self.consumers])
        return time.perf_counter() - begin

    def calibrated(self, way: str, seconds: float) -> int:
        """Items of each producer that take about so long, and enough of them that the rate does not
        grow with their number any more; a multiple of the batch."""
        batch = self.case.batch
        items, rate, took = batch, 0.0, self.seconds(way, batch)
        while items < 1 << 17 and took < 2 * seconds:
            took = self.seconds(way, items)
            if took > seconds / 4 and items / took < STABLE * rate:
                break
            rate, items = items / took, items * 4
        return max(1, round(items * seconds / took / batch)) * batch

    def stop(self) -> None:
        """End the processes."""
        self.channel.close()
        self.queue.shutdown(force=True)
        for end in self.ends:
            ray.kill(end)


QUICK = (
    (Case("1KB", "numpy"), ("channel", "queue", "queue-batched", "calls")),
    (Case("64KB", "numpy"), ("channel", "queue", "calls")),
    (Case("1MB", "numpy"), ("channel", "queue", "calls")),
    (Case("1MB", "torch"), ("channel", "queue", "calls")),
    (Case("16MB", "numpy"), ("channel", "store")),
    (Case("1KB", "numpy", PAIRS), ("channel",)),
)
"""What the targets need."""


def cases() -> Iterator[tuple[Case, tuple[str, ...]]]:
    """What is measured; several pairs last: who has read ahead gives back late."""
    for case in (*(Case(s, k) for s in SIZES for k in ("numpy", "torch")),
                 *(Case(s, "numpy", PAIRS) for s in SIZES)):  # fmt: skip
        yield case, WAYS


def measure(
    bench: Bench, case: Case, ways: tuple[str, ...], rounds: int, seconds: float
) -> list[Result]:
    """All ways of a case, one after the other in each round. Several pairs begin and end at
    different times: a third of a second of each way, at least."""
    bench.begin(case)
    seconds = seconds if case.pairs == 1 else max(0.3, seconds)
    results = [Result(case.name, way, bench.calibrated(way, seconds)) for way in ways]
    for _ in range(rounds):
        for result in results:
            took = bench.seconds(result.way, result.items)
            result.rates.append(result.items * case.pairs / took)
    return results


def ratios(results: list[Result]) -> dict[str, float]:
    """The channel's median over each other way's, and four pairs over one."""
    rate = {(result.case, result.way): result.median for result in results}
    found: dict[str, float] = {}
    for case, way in rate:
        pairs, size, kind = case.split()
        label = size if (pairs, kind) == ("1x1", "numpy") else f"{size} {kind} {pairs}"
        if way != "channel":
            found[f"{label} channel / {way}"] = rate[case, "channel"] / rate[case, way]
        elif pairs == "4x4" and (one := rate.get((f"1x1 {size} {kind}", way))):
            found[f"{size} 4x4 / 1x1"] = rate[case, way] / one
    return found


def show(results: list[Result], found: dict[str, float]) -> None:
    """Print both as tables."""
    print(f"{'case':<18}{'way':<15}{'items':>10}{'items/s':>10}{'lowest':>10}{'highest':>10}")
    for r in results:
        rates = f"{r.median:>10.0f}{min(r.rates):>10.0f}{max(r.rates):>10.0f}"
        print(f"{r.case:<18}{r.way:<15}{r.items:>10}{rates}")
    print()
    for name, ratio in found.items():
        target = TARGETS.get(name)
        note = (
            "" if target is None else f"  target {target:g}{'' if ratio >= target else ' MISSED'}"
        )
        print(f"{name:<45}{ratio:>8.2f}{note}")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="end within 45 s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of one way in one round")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds = arguments.seconds or (0.07 if arguments.quick else 0.5)
    root = str(Path(__file__).parents[1])
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}},
    )
    results: list[Result] = []
    try:
        bench = Bench()
        for case, ways in QUICK if arguments.quick else cases():
            if arguments.only in case.name:
                results += measure(bench, case, ways, arguments.rounds, seconds)
        bench.stop()
    finally:
        ray.shutdown()
    found = ratios(results)
    show(results, found)
    if arguments.json:
        made = [asdict(result) | {"median": result.median} for result in results]
        text = json.dumps({"results": made, "ratios": found, "targets": TARGETS}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
