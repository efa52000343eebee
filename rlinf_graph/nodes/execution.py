"""What a running node may ask for: its engines, its key, a place for metrics.

A backend opens an `Execution` around every node it runs. Where none is open, a node that is
called directly runs in a default one, which loads models with the torch engine on first use.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from rlinf_graph.dsl.env import Env, define_env
from rlinf_graph.dsl.model import Frozen, Model, Served
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.engine import Engine, Key
from rlinf_graph.nodes.environment import Environments, environments_class
from rlinf_graph.nodes.metric import Metrics, Reduction
from rlinf_graph.nodes.registry import engine_class

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Execution:
    """One node at work.

    Attributes:
        node: its name.
        iteration: of the run.
        seed: of the run.
        engines: by model parameter of the node.
        versions: by model parameter: the version of the weights that the engine holds.
        registers: state of data sources, kept between iterations, by node name.
        metrics: where `metric` puts what the node emits.
        steps: places in the loops around the node, outermost first.
        environments: by parameter of the node.
    """

    node: str = "direct call"
    iteration: int = 0
    seed: int = 0
    engines: MutableMapping[str, Engine] = field(default_factory=dict[str, Engine])
    versions: MutableMapping[str, int] = field(default_factory=dict[str, int])
    registers: MutableMapping[str, Any] = field(default_factory=dict[str, Any])
    metrics: Metrics = field(default_factory=Metrics)
    steps: tuple[int, ...] = ()
    environments: MutableMapping[str, Environments] = field(default_factory=dict[str, Any])

    @property
    def key(self) -> Key:
        """Names this node's random draws of this iteration, and of this step of its loops."""
        return Key(self.seed, self.node, self.iteration, self.steps)


_current: ContextVar[Execution | None] = ContextVar("execution", default=None)
_direct = Execution()
_direct_engines: dict[int, tuple[Model, Engine]] = {}
_direct_environments: dict[int, tuple[Env, Environments]] = {}


@contextmanager
def executing(execution: Execution) -> Iterator[Execution]:
    """Nodes called inside the block run in `execution`."""
    token = _current.set(execution)
    try:
        yield execution
    finally:
        _current.reset(token)


def execution() -> Execution:
    """The execution that is open, or the default one."""
    return _current.get() or _direct


def engine_of(param: str, model: Model | Frozen | Served) -> Engine:
    """The engine that holds the model given as parameter `param` of the running node."""
    current = execution()
    if current is not _direct:
        return current.engines[param]
    bare = model if isinstance(model, Model) else model.model
    if id(bare) not in _direct_engines:
        name = bare.name or bare.path
        definition = ModelDef(name, bare.path, bare.head, bare.dtype, bare.weights)
        made = engine_class("torch")(
            definition, seed=0, device="auto", dtype=bare.dtype, trainable=True
        )
        _direct_engines[id(bare)] = (bare, made)
    return _direct_engines[id(bare)][1]


def environments_of(param: str, env: Env) -> Environments:
    """The copies of the environment given as parameter `param` of the running node."""
    current = execution()
    if current is not _direct:
        return current.environments[param]
    if id(env) not in _direct_environments:
        definition = define_env(env, env.name or "env")
        made = environments_class(env.engine)(definition, seed=0, groups=1)
        _direct_environments[id(env)] = (env, made)
    return _direct_environments[id(env)][1]


def metric(
    name: str, values: Tensor | float, *, reduce: Reduction = "mean", weight: float | None = None
) -> None:
    """Emit a metric from a node or a loss.

    Args:
        name: such as `reward/mean`.
        values: a tensor, all of whose elements count, or one number.
        reduce: over elements, samples, micro-batches and ranks: `mean`, `sum`, `max` or `min`.
        weight: of one number in a mean; 1 by default.
    """
    emit(execution().metrics, name, values, reduce=reduce, weight=weight)


def emit(
    metrics: Metrics,
    name: str,
    values: Tensor | float,
    *,
    reduce: Reduction = "mean",
    weight: float | None = None,
) -> None:
    """Emit into given metrics; losses use it, nodes call `metric`."""
    if isinstance(values, float | int):
        share = 1.0 if weight is None else weight
        metrics.add(name, reduce, values * share if reduce == "mean" else float(values), share)
        return
    if not values.numel():
        return
    flat = values.detach()
    if reduce in ("mean", "sum"):
        total = flat.sum(dtype=_double())
    else:
        total = flat.max() if reduce == "max" else flat.min()
    metrics.add(name, reduce, float(total), float(values.numel()))


@cache
def _double() -> Any:
    """The type that metrics add up in."""
    import torch  # whoever emits a tensor has loaded it

    return torch.float64
