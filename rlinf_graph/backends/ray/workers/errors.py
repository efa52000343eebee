"""What went wrong in a worker, in a form that travels between processes."""

from __future__ import annotations

import os
import pickle
import traceback
import uuid
from dataclasses import dataclass, field, replace

from ray.exceptions import ActorDiedError
from torch.distributed import DistError

DIED = "died"
"""The kind of a failure without an exception: the process is gone."""
SILENT = "silent"
"""Likewise: the process does not answer."""
SAID = {DIED: "its process died", SILENT: "its process does not answer"}
FRAMES = 3
"""Lines of the worker's stack that a message shows, counted from where the error was raised."""


@dataclass(frozen=True)
class Failure:
    """One worker's error.

    Attributes:
        group: name of the worker group.
        rank: in the group.
        host: address of its machine.
        method: what it was doing; empty when it died between calls.
        kind: the class of the exception, `died` or `silent`.
        message: of the exception, what Ray knows of the death, or which process is silent.
        frames: `file:line in function`, the innermost last.
        pickled: the exception itself; None when it cannot be pickled.
        origin: the failure of which this one is a consequence; None for a first cause.
        broken_link: it is a connection that broke, so that a dead peer may be behind it.
        number: like no other's.
    """

    group: str
    rank: int
    host: str
    method: str
    kind: str
    message: str
    frames: tuple[str, ...] = ()
    pickled: bytes | None = None
    origin: Failure | None = None
    broken_link: bool = False
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def first(self) -> Failure:
        """The first cause: this failure, or the one behind it."""
        return self.origin or self

    @property
    def weight(self) -> int:
        """0 for a first cause, 1 for a broken connection, 2 for a consequence."""
        return 2 if self.origin else int(self.broken_link)

    def render(self) -> str:
        """One sentence, and the place in the code when there is one."""
        where = f"`{self.group}` rank {self.rank} on {self.host}"
        doing = f" in `{self.method}`" if self.method else ""
        what = SAID.get(self.kind, self.kind)
        text = f"{where} failed{doing}: {what}" + (f": {self.message}" if self.message else "")
        return "\n  at ".join([text, *self.frames])

    def exception(self) -> BaseException | None:
        """The exception that the worker raised, when it could be pickled."""
        if self.pickled is None:
            return None
        try:
            return pickle.loads(self.pickled)
        except Exception:  # any, from a user's class: the text is there in any case
            return None


class WorkerError(RuntimeError):
    """A worker failed: the first cause, and how many others failed because of it.

    `__cause__` is the worker's own exception where it can be pickled.
    """

    def __init__(self, failure: Failure, others: int = 0) -> None:
        """Keep the failure; `others` counts the errors that are not shown."""
        self.failure, self.others = failure, others
        more = f"\n({others} more of the group's workers failed after it)" if others else ""
        super().__init__(failure.render() + more)
        self.__cause__ = failure.exception()

    def __reduce__(self) -> tuple[type[WorkerError], tuple[Failure, int]]:
        """Travel between processes with the failure, not with its text."""
        return WorkerError, (self.failure, self.others)


class MismatchError(RuntimeError):
    """Two ends of a transfer, or the ranks of a collective, do not agree about it."""


class BrokenLinkError(RuntimeError):
    """A collective broke off, most likely because a rank is gone."""


def failure_of(error: BaseException, group: str, rank: int, host: str, method: str) -> Failure:
    """What a worker tells of an exception that one of its methods raised."""
    made = Failure(
        group, rank, host, method, type(error).__name__, str(error), _frames(error),
        _pickled(error), broken_link=is_broken_link(error),
    )  # fmt: skip
    if isinstance(error, WorkerError):
        return replace(made, origin=error.failure.first)
    return made


def death_of(error: BaseException, group: str, rank: int, host: str, method: str = "") -> Failure:
    """What a process that is gone can no longer tell; `error` is what Ray knows of it.

    Its number is that of Ray's actor, so that whoever hears of a death hears of the same one.
    """
    actor: str | None = error.actor_id if isinstance(error, ActorDiedError) else None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    known = [line for line in lines if "exit" in line.lower() or "died" in line.lower()]
    made = Failure(group, rank, host, method, DIED, " ".join((known or lines)[-1:]))
    return replace(made, number=actor) if actor else made


def silence_of(group: str, rank: int, seat: tuple[str, int], seconds: float) -> Failure:
    """Of a process that has not answered for so long; `seat` is its machine and its id."""
    host, process = seat
    told = (
        f"nothing for {seconds:g} s from process {process}. It is stopped, or C code holds the "
        f"interpreter's lock: `py-spy dump --pid {process}` shows where"
    )
    return Failure(group, rank, host, "", SILENT, told)


def is_broken_link(error: BaseException) -> bool:
    """Whether a peer's end may be the cause: torch's gloo has no class of its own for that."""
    kinds = (BrokenLinkError, DistError)
    return isinstance(error, kinds) or "gloo/transport" in str(error)


def _frames(error: BaseException) -> tuple[str, ...]:
    stack = traceback.extract_tb(error.__traceback__)
    own = os.path.dirname(__file__)
    users = [frame for frame in stack if os.path.dirname(frame.filename) != own] or list(stack)
    return tuple(f"{f.filename}:{f.lineno} in {f.name}" for f in users[-FRAMES:])


def _pickled(error: BaseException) -> bytes | None:
    try:
        made = pickle.dumps(error)
        pickle.loads(made)
    except Exception:  # any, from a user's class
        return None
    return made
