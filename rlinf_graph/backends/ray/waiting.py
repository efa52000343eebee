"""Who waits for whom in a run, in words. Looked at when nothing comes, never before."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx

from rlinf_graph.ir.position import Moment, Position
from rlinf_graph.ir.program import Instruction, Program, Publish

Place = tuple[str, int]
"""A worker group's name and a rank of it."""

Question = tuple[str, Sequence[Any]]
"""A method of the board, and its arguments."""

SHOWN = 8
"""Waits that an error lists."""


@dataclass(frozen=True)
class Doing:
    """What a rank is in.

    Attributes:
        kind: of the instruction, such as `Run`.
        at: its position; None before the first.
        sent: messages to the board.
    """

    kind: str
    at: Position | None
    sent: int = 0

    def __str__(self) -> str:
        """Such as `Run` of iteration 3, chunk 1."""
        if self.at is None:
            return "its first instruction"
        axes = ("chunk", "epoch", "minibatch", "micro_batch")
        parts = [f"iteration {self.at.iteration}", *(f"step {step}" for step in self.at.steps)]
        parts += [f"{a.replace('_', '-')} {n}" for a in axes if (n := getattr(self.at, a))]
        return f"`{self.kind}` of {', '.join(parts)}"


@dataclass(frozen=True)
class Wait:
    """A rank waits for others.

    Attributes:
        who: waits.
        what: for that, such as samples of an edge.
        on: the ranks that have to do something.
        until: the moment that they are past when they have; None where that does not tell.
        seconds: since it began.
    """

    who: Place
    what: str
    on: tuple[Place, ...]
    until: Moment | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """Such as `verify` rank 0 waits for samples of `e`, iteration 3, from `rollout` rank 1."""
        whom = ", ".join(named(place) for place in self.on[:SHOWN])
        more = f" and {len(self.on) - SHOWN} more" if len(self.on) > SHOWN else ""
        after = f" of {whom}{more}" if whom else ", of which there is nobody left"
        return f"{named(self.who)} waits for {self.what}{after}"

    def narrowed(self, doing: Mapping[Place, Doing], running: Collection[Place]) -> Wait:
        """Without ranks that have done their part, as far as their positions tell."""
        left = tuple(place for place in self.on if place in running)
        late = tuple(place for place in left if not _past(doing.get(place), self.until))
        return replace(self, on=late or left)


@dataclass(frozen=True)
class Pulse:
    """What a process says of itself.

    Attributes:
        doing: what its ranks are in, those that are not done.
        heard: how often something has changed among them.
        waits: for one another.
    """

    doing: Mapping[Place, Doing]
    heard: int
    waits: Sequence[Wait]


def named(place: Place) -> str:
    """Such as `train` rank 1."""
    return f"`{place[0]}` rank {place[1]}"


def read(
    program: Program,
    queues: Mapping[str, Any],
    rings: Mapping[str, Any],
    asking: Mapping[Place, Question],
    who: Place,
) -> Wait | None:
    """The wait behind a rank's question to the board; None for one that it answers at once.

    Args:
        program: of the run.
        queues: of the board, by edge.
        rings: likewise, by name.
        asking: what all ranks ask.
        who: one of them.
    """
    method, arguments = asking[who]
    match method:
        case "get":
            return _samples(program, queues, who, *arguments)
        case "room":
            return _room(program, queues, who, *arguments)
        case "acquire":
            return _turn(program, rings, asking, *arguments)
        case "weights":
            model, version = arguments
            whom = tuple((name, 0) for name in makers(program, model))
            return Wait(who, f"version {version} of `{model}`", whom, (version - 1,))
        case "meet":
            return Wait(who, "the address", ((arguments[0], 0),))
        case _:
            return None


def given(question: Question) -> str:
    """What a rank has got when the board has answered it; empty for what says nothing."""
    method, arguments = question
    match method:
        case "get":
            edge, moment = list(arguments[0])[-1]
            return f"samples of `{edge}`, {_shown(moment)}"
        case "room":
            edge, moment = arguments[0][-1]
            return f"room in `{edge}` for {_shown(moment)}"
        case "acquire":
            return f"its turn on {arguments[1]}"
        case "weights":
            return f"version {arguments[1]} of `{arguments[0]}`"
        case _:
            return ""


def all_waits(
    program: Program,
    queues: Mapping[str, Any],
    rings: Mapping[str, Any],
    asking: Mapping[Place, tuple[Question, float]],
) -> list[Wait]:
    """The waits behind all questions, which are given with when they were asked."""
    now, asked = time.monotonic(), {who: question for who, (question, _) in asking.items()}
    found = (read(program, queues, rings, asked, who) for who in asked)
    return [replace(w, seconds=now - asking[w.who][1]) for w in found if w is not None]


def at_reduction(
    program: Program,
    doing: Mapping[Place, Doing],
    since: Mapping[Place, float],
    deaf: Collection[Place] = (),
) -> list[Wait]:
    """Ranks that sum gradients wait for those of their group that are not there yet, or deaf.

    `since` has seconds.
    """
    found: list[Wait] = []
    for group in program.groups:
        ranks = [(group.name, rank) for rank in range(group.ranks)]
        for who in ranks if group.ranks > 1 else []:
            mine = doing.get(who)
            if mine is None or mine.kind != "OptimizerStep" or mine.at is None:
                continue
            late = (p for p in ranks if p in deaf or not _level(mine, doing.get(p)))
            others = tuple(p for p in late if p != who)
            if others:
                what = f"the gradients of iteration {mine.at.iteration}"
                found.append(Wait(who, what, others, None, since.get(who, 0.0)))
    return found


def cycle(waits: Sequence[Wait]) -> list[Wait]:
    """Waits of which each is for the next one's rank, and the last for the first's; or none."""
    by_who = {wait.who: wait for wait in waits}
    try:
        return [by_who[who] for who, _on in nx.find_cycle(_graph(waits))]
    except nx.NetworkXNoCycle:
        return []


def behind(waits: Sequence[Wait], place: Place) -> list[Wait]:
    """The waits that end at a rank, directly or through others; the nearest first."""
    graph = _graph(waits).reverse()
    near = list(nx.bfs_tree(graph, place))[1:] if place in graph else []
    by_who = {wait.who: wait for wait in waits}
    return [by_who[who] for who in near]


def _graph(waits: Sequence[Wait]) -> nx.DiGraph[Place]:
    return nx.DiGraph((wait.who, place) for wait in waits for place in wait.on)


def listed(waits: Sequence[Wait]) -> tuple[str, ...]:
    """Lines about waits, with how long they take; the first few."""
    lines = [f"{wait} for {wait.seconds:.0f} s" for wait in waits[:SHOWN]]
    if len(waits) > SHOWN:
        lines.append(f"and {len(waits) - SHOWN} more ranks wait")
    return tuple(lines)


def _samples(
    program: Program, queues: Mapping[str, Any], who: Place, wanted: Mapping[Any, Any]
) -> Wait | None:
    for (edge, moment), (rows, _known) in wanted.items():
        if not queues[edge].has(moment, rows):
            source = queues[edge].channel.source.node
            what = f"samples of `{edge}`, {_shown(moment)},"
            return Wait(who, what, _ranks(program, source), moment)
    return None


def _room(
    program: Program, queues: Mapping[str, Any], who: Place, places: Sequence[tuple[str, Moment]]
) -> Wait | None:
    for edge, moment in places:
        queue = queues[edge]
        if not queue.has_room(moment):
            target = queue.channel.target
            oldest = min(queue.parts, default=None)
            what = f"room in `{edge}` for {_shown(moment)}, full with {len(queue.parts)} moments,"
            return Wait(who, what, _ranks(program, target), oldest)
    return None


def _turn(
    program: Program,
    rings: Mapping[str, Any],
    asking: Mapping[Place, Question],
    who: Place,
    name: str,
    position: int,
) -> Wait | None:
    ring = rings[name]
    if ring.may(position, who):
        return None
    names = next(r.positions[ring.turn] for r in program.rings if r.name == name)
    holders = tuple(place for group in names for place in _ranks(program, group))
    left = tuple(place for place in holders if not _done_with(ring, name, asking.get(place)))
    return Wait(who, f"its turn on {name}, which has come to position {ring.turn},", left)


def _done_with(ring: Any, name: str, question: Question | None) -> bool:
    """Whether a rank asks for its next turn on a ring, having given back the one of this round."""
    if question is None or question[0] != "acquire":
        return False
    who, asked, _position = question[1]
    return asked == name and ring.taken[who] > ring.round


def makers(program: Program, model: str) -> list[str]:
    """The groups that publish a model."""
    return [
        g.name
        for g in program.groups
        if any(_publishes(i, model) for i in every_instruction(g.body))
    ]


def _publishes(instruction: Instruction, model: str) -> bool:
    return isinstance(instruction, Publish) and instruction.model == model


def every_instruction(body: Sequence[Instruction]) -> Iterator[Instruction]:
    """The instructions of a list, those inside others too."""
    for instruction in body:
        yield instruction
        for name in ("body", "then", "otherwise"):
            yield from every_instruction(getattr(instruction, name, ()))


def _ranks(program: Program, group: str) -> tuple[Place, ...]:
    return tuple((group, rank) for rank in range(program.group(group).ranks))


def _past(doing: Doing | None, until: Moment | None) -> bool:
    if doing is None or doing.at is None or until is None:
        return False
    return (doing.at.iteration, *doing.at.steps)[: len(until)] > until


def _level(mine: Doing, other: Doing | None) -> bool:
    """Whether another rank is at the same reduction, or has been."""
    if other is None or other.at is None or mine.at is None:
        return False
    here, there = replace(mine.at, rank=0), replace(other.at, rank=0)
    return (other.kind == "OptimizerStep" and here == there) or _key(there) > _key(here)


def _key(at: Position) -> tuple[int, ...]:
    return (at.iteration, *at.steps, at.chunk, at.epoch, at.minibatch)


def _shown(moment: Moment) -> str:
    return ", step ".join(f"{n}" for n in (f"iteration {moment[0]}", *moment[1:]))
