from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from rlinf_graph.compiler.cost import CostModel, NodeCost
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.iteration_constants import ALONE
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.graph import Graph, ModelDef, ModelUse, Node
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.work import Work


@dataclass(frozen=True)
class Case:
    """A node, its devices and settings, ready to be costed."""

    costs: CostModel
    node: Node
    devices: tuple[int, ...]
    settings: NodePlan

    def cost(self, kept: float = 0.0) -> NodeCost:
        return self.costs.node(self.node, self.devices, self.settings, kept)

    @property
    def seconds(self) -> float:
        return self.cost().seconds

    @property
    def memory(self) -> float:
        cost = self.cost()
        return sum(size for _, size in cost.resident + cost.working)


def make_case(
    work: Work,
    cluster: str | Cluster = "8xH100",
    model: str = "Qwen/Qwen2.5-7B-Instruct",
    head: str = "lm",
    dtype: str = "auto",
    first: int = 0,
    alone: bool = False,
    **settings: object,
) -> Case:
    """A graph of one node; settings are those of `NodePlan` and of `Parallel`.

    `alone` is for runs that do nothing else, such as pretraining: nothing that RL adds is counted.
    """
    axes = {k: v for k, v in settings.items() if k in Parallel.model_fields}
    others = {k: v for k, v in settings.items() if k not in axes}
    plan = NodePlan.model_validate(others | {"parallel": axes})
    use = (ModelUse("model", "m", Port.TRAINED),)
    node = Node("n", "n", Role.COMPUTE, Unit.SAMPLE, models=use, work=work)
    graph = Graph("g", (node,), (ModelDef("m", model, head, dtype),))
    built = load_cluster(cluster) if isinstance(cluster, str) else cluster
    devices = tuple(range(first, first + plan.parallel.devices))
    gpu = replace(CONSTANTS["gpu"], iteration=ALONE) if alone else CONSTANTS["gpu"]
    constants = {**CONSTANTS, "gpu": gpu}
    return Case(CostModel(graph, built, constants=constants), node, devices, plan)


@pytest.fixture(scope="session")
def case() -> Callable[..., Case]:
    return make_case
