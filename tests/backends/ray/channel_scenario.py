"""Scenarios of the channel's stress test: who does what in which process, drawn at random.

Every key has a resident, a consumer that reads it to the end of the stream, so that no producer
waits for ever in a scenario; visitors never wait for long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

KEYS: tuple[Any, ...] = (None, "a", ("b", 2))
"""What the numbers of keys stand for."""

KINDS = ("plain", "bytes", "array", "tensor", "nested")
SIZES = {12: 150, 600: 60, 9_000: 20, 70_000: 4, 400_000: 3, 1_500_000: 1}
"""Bytes of an item's data, and the most such items that are put in a row."""

TARGETS = (0.5, 1.0, 3.0, 8.0, 1000.0)
"""Weights of batches; binary fractions, so that sums are exact."""


@dataclass(frozen=True)
class Put:
    """Put `count` items; weights and priorities are used in turn. `how` is put, nowait, timeout,
    await, or cancel, which cancels an awaited put after `delay` seconds."""

    key: int
    count: int
    kind: str
    nbytes: int
    how: str
    delay: float
    weights: tuple[float, ...]
    priorities: tuple[int, ...]


@dataclass(frozen=True)
class Get:
    """Take `count` items, or batches of weight `target`; `how` as with `Put`, or iterate."""

    key: int
    count: int
    how: str
    delay: float
    target: float | None


@dataclass(frozen=True)
class Drain:
    """Repeat steps, of which the last one waits, until the key's stream ends."""

    key: int
    steps: tuple[Get, ...]


@dataclass(frozen=True)
class Flush:
    """Wait until the broker knows of everything."""


@dataclass(frozen=True)
class Pause:
    """Do nothing: what was given ahead goes back meanwhile."""

    seconds: float


@dataclass(frozen=True)
class Close:
    """This producer puts nothing more."""


@dataclass(frozen=True)
class Die:
    """End the process by SIGKILL."""


@dataclass(frozen=True)
class Fail:
    """Fail the channel."""


Step = Put | Get | Drain | Flush | Pause | Close | Die | Fail


@dataclass(frozen=True)
class Party:
    """One thread of a process, with its own `Channel` object."""

    number: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Scenario:
    """A channel and its processes. `leaves` says which of these say that they are done, `victim`
    which of them ends badly, and `ending` how: clean, killed, failed, or departed, which is a kill
    after leaving, and nobody's failure."""

    options: dict[str, Any]
    named: bool
    processes: tuple[tuple[Party, ...], ...]
    leaves: tuple[bool, ...]
    ending: str = "clean"
    victim: int = 0
    keys: tuple[int, ...] = field(default=(0,))

    @property
    def parties(self) -> list[Party]:
        """Of all processes."""
        return [party for process in self.processes for party in process]

    def consumers(self, key: int) -> list[Party]:
        """Who takes items of a key."""
        return [party for party in self.parties if key in _taken_keys(party)]

    def cancels(self, key: int) -> bool:
        """Whether gets of a key are cancelled."""
        return any(
            get.how == "cancel"
            for party in self.consumers(key)
            for step in party.steps
            for get in (step.steps if isinstance(step, Drain) else (step,))
            if isinstance(get, Get) and get.key == key
        )


def _taken_keys(party: Party) -> set[int]:
    return {step.key for step in party.steps if isinstance(step, Get | Drain)}


DELAYS = st.sampled_from([0.0, 0.001, 0.004, 0.02])
PAUSES = st.builds(Pause, st.sampled_from([0.003, 0.03]))


@st.composite
def puts(draw: st.DrawFn, keys: tuple[int, ...]) -> Put:
    """A row of items of one size."""
    nbytes = draw(st.sampled_from(list(SIZES)))
    return Put(
        key=draw(st.sampled_from(keys)),
        count=draw(st.integers(1, SIZES[nbytes])),
        kind=draw(st.sampled_from(KINDS)),
        nbytes=nbytes,
        how=draw(st.sampled_from(["put", "put", "put", "nowait", "timeout", "await", "cancel"])),
        delay=draw(DELAYS),
        weights=draw(st.sampled_from([(1.0,), (1.0, 2.0, 0.5), (0.0, 1.0), (5.0,)])),
        priorities=draw(st.sampled_from([(0,), (1, 0), (0, 1, 2), (-1, 3)])),
    )


@st.composite
def gets(draw: st.DrawFn, key: int, ways: tuple[str, ...]) -> Get:
    """Items or batches of a key, one after the other."""
    target = draw(st.none() | st.sampled_from(TARGETS))
    if key == 0 and target is None:
        ways = (*ways, "iterate") if "get" in ways else ways
    how = draw(st.sampled_from(ways))
    return Get(key, draw(st.integers(1, 12)), how, draw(DELAYS), target)


def drains(key: int) -> st.SearchStrategy[Drain]:
    """A resident's work."""
    before = st.lists(gets(key, ("get", "nowait", "timeout", "await", "cancel")), max_size=2)
    last = gets(key, ("get", "await"))
    return st.builds(lambda some, end: Drain(key, (*some, end)), before, last)


@st.composite
def producers(draw: st.DrawFn, keys: tuple[int, ...]) -> tuple[Step, ...]:
    """A producer's work."""
    some = st.lists(st.one_of(puts(keys), puts(keys), PAUSES, st.just(Flush())), max_size=4)
    return (*draw(some), draw(puts(keys)), Close())


@st.composite
def visitors(draw: st.DrawFn, keys: tuple[int, ...]) -> tuple[Step, ...]:
    """The work of a consumer that looks in now and then."""
    some = st.sampled_from(keys).flatmap(lambda key: gets(key, ("nowait", "timeout", "cancel")))
    return tuple(draw(st.lists(st.one_of(some, some, PAUSES), min_size=1, max_size=4)))


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Of `Channel.create`, without the number of producers."""
    return {
        "capacity": draw(st.sampled_from([None, None, 1, 2, 7, 40])),
        "capacity_bytes": draw(st.sampled_from([None, None, 100_000, 2_000_000])),
        "prioritised": draw(st.sampled_from([False, False, True])),
        "ordered": draw(st.booleans()),
        "shared_memory": draw(st.sampled_from([None, True, False])),
    }


@st.composite
def scenarios(draw: st.DrawFn, processes: int = 3) -> Scenario:
    """A channel between some processes; up to eight parties are spread over them."""
    keys = tuple(range(draw(st.integers(1, len(KEYS)))))
    work = [draw(producers(keys)) for _ in range(draw(st.integers(1, 3)))]
    made = draw(options()) | {"producers": len(work)}
    work += [(draw(drains(key)),) for key in keys]
    work += [(draw(drains(key)),) for key in draw(st.lists(st.sampled_from(keys), max_size=1))]
    work += draw(st.lists(visitors(keys), max_size=1))
    ending = draw(st.sampled_from(["clean"] * 7 + ["killed", "failed", "departed"]))
    homes = draw(st.lists(st.integers(0, processes - 1), min_size=len(work), max_size=len(work)))
    victim = draw(st.sampled_from(homes))
    if ending in ("killed", "failed"):
        last = Die() if ending == "killed" else Fail()
        homes.append(victim)
        work.append((*draw(st.lists(PAUSES, max_size=2)), last))
    elif ending == "departed" and any(_puts(work[n]) for n, h in enumerate(homes) if h == victim):
        ending = "clean"  # what a producer has put may lie in its own memory
    parties = [Party(number, steps) for number, steps in enumerate(work)]
    placed = (tuple(p for p in parties if homes[p.number] == n) for n in range(processes))
    leaves = [draw(st.booleans()) for _ in range(processes)]
    leaves[victim] = leaves[victim] or ending == "departed"
    named = draw(st.booleans())
    return Scenario(made, named, tuple(placed), tuple(leaves), ending, victim, keys)


def _puts(steps: tuple[Step, ...]) -> bool:
    return any(isinstance(step, Put) for step in steps)
