"""One Ray session serves the whole test run; tests that need none start none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[list[str]]:
    """Two Ray nodes with four processor cores each; their ids."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 4})
    nodes.add_node(num_cpus=4)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield [node["NodeID"] for node in ray.nodes()]
    finally:
        ray.shutdown()
        nodes.shutdown()
