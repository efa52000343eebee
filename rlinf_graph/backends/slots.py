"""What a rank puts aside while it goes round in a loop."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

from rlinf_graph.ir import packed, ragged
from rlinf_graph.ir.batch import Batch
from rlinf_graph.ir.program import Keep, Send


class Slots:
    """Outputs of the steps so far, and what they made when joined."""

    def __init__(self) -> None:
        """Nothing is there."""
        self._kept: dict[str, list[Batch]] = defaultdict(list)
        self._gathered: dict[str, Batch] = {}

    def keep(self, keep: Keep, outputs: tuple[Any, ...]) -> None:
        """Put an output aside, or what an inner loop gathered."""
        value = self._gathered[keep.gathered] if keep.gathered else outputs[keep.output]
        if keep.until:
            value = _where(value, keep.until, done=True)
        self._kept[keep.slot].append(value)

    def gather(self, slot: str) -> None:
        """Join what was put aside."""
        self._gathered[slot] = ragged.join(self._kept.pop(slot))

    def outgoing(self, send: Send, outputs: tuple[Any, ...]) -> Batch:
        """What goes out to an edge."""
        value = self._gathered[send.gathered] if send.gathered else outputs[send.output]
        if send.until:
            value = _where(value, send.until, done=False)
        return project(value, send.field)


def project(value: Any, field: tuple[str, ...]) -> Any:
    """The field of an output that an edge carries."""
    for name in field:
        value = getattr(value, name)
    return value


def _where(batch: Batch, field: str, *, done: bool) -> Batch:
    """The samples that are done, or those that are not."""
    mask = cast("Any", getattr(batch, field)).cpu().numpy()
    return packed.select(batch, (mask if done else ~mask).nonzero()[0])
