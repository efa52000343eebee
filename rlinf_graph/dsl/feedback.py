"""The edges that close a cycle: new weights for the next iteration."""

from __future__ import annotations

from rlinf_graph.dsl.model import Model, Served
from rlinf_graph.dsl.node import node
from rlinf_graph.ir.batches import Weights
from rlinf_graph.ir.node_type import Place, Port, Role, Unit


@node(role=Role.SYNC, place=Place.DEVICE, unit=Unit.BATCH, ports={"into": Port.SERVED})
def sync(
    weights: Weights,  # noqa: ARG001  the signature is the contract; the compiler carries it out
    *,
    into: Model | Served,  # noqa: ARG001  likewise
    max_staleness: int | None = 0,  # noqa: ARG001  likewise
    every: int = 1,  # noqa: ARG001  likewise
    interrupt: bool = False,  # noqa: ARG001  likewise
) -> None:
    """Deliver trained weights to those who sample with the model.

    Args:
        weights: what `train` returned.
        into: the model whose served port takes them, or one of its named ports.
        max_staleness: by how many iterations the oldest token of a sample may lag behind the
            iteration that trains on it. 0 is on-policy. The compiler may choose less. Says nothing
            of a named port, whose weights no sample is drawn with.
        every: deliver after every that many iterations; adds `every - 1` to the staleness.
        interrupt: whether `rollout` takes weights that come while it generates: it stops between
            two tokens, reads what was said again with the new weights and goes on with them. Each
            token keeps the version that drew it, and the bound holds for the oldest. Samples are
            younger, and depend on when weights come: a run cannot be repeated. Needs a staleness of
            at least 1. Fu et al. 2025 (AReaL), "interruptible rollout".
    """
    raise RuntimeError("sync has a meaning only inside a pipeline")
