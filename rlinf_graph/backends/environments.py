"""The environments of one process."""

from __future__ import annotations

import threading

from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.plan import Plan
from rlinf_graph.nodes.environment import Environments, environments_class


class Registers:
    """Environments by name: made when a node first asks for them, kept as long as the process."""

    def __init__(self, graph: Graph, plan: Plan, seed: int) -> None:
        """Nothing is made yet."""
        self._graph, self._plan, self._seed = graph, plan, seed
        self._made: dict[str, Environments] = {}
        self._lock = threading.Lock()

    def of(self, node: Node) -> dict[str, Environments]:
        """Those of a node, by parameter."""
        return {param: self._get(name) for param, name in node.envs}

    def _get(self, name: str) -> Environments:
        with self._lock:
            if name not in self._made:
                env = self._graph.env(name)
                made = environments_class(env.engine)
                self._made[name] = made(env, seed=self._seed, groups=self._groups(name))
            return self._made[name]

    def _groups(self, name: str) -> int:
        """Those of the region that steps it."""
        regions = [
            n.region for n in self._graph.nodes if n.region and name in dict(n.envs).values()
        ]
        return max((self._plan.regions.get(region, 1) for region in regions), default=1)
