"""What a channel promises, checked against the logs of all who used it."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from tests.backends.ray.channel_party import Event
from tests.backends.ray.channel_scenario import Scenario

Log = dict[int, list[Event]]
"""By party."""
Whose = tuple[int, int]
FOREVER = float("inf")


class Taken(NamedTuple):
    """An item that a consumer got."""

    consumer: int
    event: Event
    whose: Whose


class Model:
    """A scenario that has been played to its end. `faults` says what was promised and not kept."""

    def __init__(self, scenario: Scenario, log: Log) -> None:
        """Check everything that holds for the scenario's ending."""
        self._scenario, self._log = scenario, log
        self.faults: list[str] = []
        self._put = {e.items[0]: e for e in self._events("put")}
        self._got = [
            Taken(consumer, event, whose)
            for consumer, events in log.items()
            for event in events
            if event.what in ("got", "batch")
            for whose in event.items
        ]
        self._nothing_foreign_or_twice()
        if scenario.ending in ("clean", "departed"):
            self._nothing_lost()
            self._sizes()
            for key in scenario.keys:
                self._capacity(key)
        for key in scenario.keys:
            self._order(key)
            self._batches(key)

    def _events(self, *what: str) -> Iterable[Event]:
        return (e for log in self._log.values() for e in log if e.what in what)

    def _require(self, holds: bool, told: str) -> None:
        if not holds:
            self.faults.append(told)

    def _nothing_foreign_or_twice(self) -> None:
        counts = Counter(got.whose for got in self._got)
        twice = sorted(whose for whose, count in counts.items() if count > 1)
        self._require(not twice, f"came twice: {twice}")
        known = [got for got in self._got if got.whose in self._put]
        wrong = [got for got in known if got.event.key != self._put[got.whose].key]
        self._require(not wrong, f"came under another key: {wrong}")
        foreign = sorted(counts.keys() - self._put.keys())
        if self._scenario.ending in ("clean", "departed"):  # otherwise logs are missing
            self._require(not foreign, f"came, although its put said no: {foreign}")

    def _nothing_lost(self) -> None:
        lost = sorted(self._put.keys() - {got.whose for got in self._got})
        self._require(not lost, f"lost: {lost}")

    def _sizes(self) -> None:
        most = self._scenario.options["capacity_bytes"] or FOREVER
        wrong = [e for e in self._events("too large") if e.nbytes <= most]
        wrong += [e for e in self._put.values() if e.nbytes > most]
        self._require(not wrong, f"too large, or not: {wrong}")

    def _capacity(self, key: int) -> None:
        """Of items put and not yet taken: a put has room when it returns, and a get makes room
        after it has started."""
        options = self._scenario.options
        puts = sorted((e.end, 1, e.nbytes) for e in self._put.values() if e.key == key)
        mine = [got for got in self._got if got.event.key == key and got.whose in self._put]
        gets = sorted((got.event.start, 1, self._put[got.whose].nbytes) for got in mine)
        starts = [start for start, _one, _nbytes in gets]
        for name, column in (("capacity", 1), ("capacity_bytes", 2)):
            inside, taken = 0, [0, *itertools.accumulate(entry[column] for entry in gets)]
            for entry in puts if options[name] else []:
                inside += entry[column]
                there = inside - taken[bisect_right(starts, entry[0])]
                self._require(there <= options[name], f"{name}: {there} under key {key}")

    def _order(self, key: int) -> None:
        """Items of one producer (and of one priority): numbers rise. For one consumer always,
        for several in an ordered channel."""
        consumers = self._scenario.consumers(key)
        if len(consumers) > 1 and not self._scenario.options["ordered"]:
            return
        rows: dict[tuple[int, int], list[Taken]] = defaultdict(list)
        prioritised = self._scenario.options["prioritised"]
        for got in self._got:
            if got.event.key == key and got.whose in self._put:
                priority = self._put[got.whose].priority if prioritised else 0
                rows[got.whose[0], priority].append(got)
        for row in rows.values():
            for consumer in {got.consumer for got in row}:
                mine = [got.whose for got in row if got.consumer == consumer]
                self._require(mine == sorted(mine), f"party {consumer} got {mine}")
            ended = FOREVER
            for got in sorted(row, key=lambda got: got.whose, reverse=True):
                self._require(got.event.start <= ended, f"taken after a younger one: {got}")
                ended = min(ended, got.event.end)
        if prioritised and not self._scenario.cancels(key):
            self._priorities(key)

    def _priorities(self, key: int) -> None:
        """Nothing is taken while the broker knows of something more urgent."""
        known: dict[Whose, float] = {}
        for log in self._log.values():
            waiting: list[Whose] = []
            for event in log:
                if event.what == "put" and event.key == key:
                    waiting.append(event.items[0])
                elif event.what == "known":
                    known |= dict.fromkeys(waiting, event.end)
                    waiting = []
        gots = [got for got in self._got if got.event.key == key and got.whose in self._put]
        for first, later in itertools.product(gots, gots):
            overtaken = (
                later.event.start > first.event.end
                and self._put[later.whose].priority > self._put[first.whose].priority
                and known.get(later.whose, FOREVER) < first.event.start
            )
            self._require(not overtaken, f"{first} came before the more urgent {later}")

    def _batches(self, key: int) -> None:
        """The fewest items of enough weight, the most urgent first; one lighter, last batch."""
        light: list[Event] = []
        for event in self._events("batch"):
            if event.key != key or not all(whose in self._put for whose in event.items):
                continue
            puts = [self._put[whose] for whose in event.items]
            weights = [put.weight for put in puts]
            self._require(bool(puts), f"an empty batch: {event}")
            self._require(sum(weights[:-1]) < event.weight, f"more than needed: {event} {weights}")
            if sum(weights) < event.weight:
                light.append(event)
            order = [-put.priority for put in puts]
            urgent = order == sorted(order) or not self._scenario.options["prioritised"]
            self._require(urgent, f"not the most urgent first: {event}")
        self._require(len(light) <= 1, f"several light batches: {light}")
        closes = [[e for e in log if e.what == "known"] for log in self._log.values()]
        closed = max((known[-1].start for known in closes if known), default=0.0)
        for event in light if self._scenario.ending in ("clean", "departed") else []:
            rest = [e for e in self._events("got", "batch") if e.key == key and e.start > event.end]
            self._require(not rest, f"a light batch before the last one: {event} {rest}")
            self._require(event.end >= closed, f"a light batch before the end: {event}")
