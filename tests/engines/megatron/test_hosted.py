"""In worker processes on Ray: one replica over two processes, and two of one each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.nodes.metric import Metrics
from tests.engines.megatron import small
from tests.engines.megatron.conftest import NEEDS
from tests.engines.megatron.test_parity import close, name_of, split_experts

pytestmark = [NEEDS, pytest.mark.engines, pytest.mark.timeout(600)]
CLUSTER = """name = "cores"
[[node_group]]
name = "cpu"
device = "cpu-core"
nodes = 1
devices_per_node = 2
cpus = 2
memory_gb = 4
"""


@pytest.mark.parametrize("parallel", [{"pp": 2}, {"dp": 2, "shard": "optimizer"}], ids=name_of)
def test_a_proxy_trains_as_the_torch_engine_does(
    ray_nodes: list[str], model: Callable[..., Path], tmp_path: Path, parallel: dict[str, Any]
) -> None:
    from rlinf_graph.backends.ray.hosted.host import HostedEngine, Making
    from rlinf_graph.backends.ray.hosted.proxy import Proxy
    from rlinf_graph.backends.ray.workers.group import WorkerGroup
    from rlinf_graph.backends.ray.workers.reservation import Reservation

    assert find_spec("megatron")
    path, replicas = model("tied"), parallel.get("dp", 1)
    (tmp_path / "cores.toml").write_text(CLUSTER)
    settings = NodePlan(engine="megatron", parallel=Parallel(**parallel))
    making = Making("megatron", small.definition(path), 0, True, settings)
    with Reservation(load_cluster(str(tmp_path / "cores.toml"))) as reservation:
        seats = reservation.on(range(2), tensor_parallel=1)
        with WorkerGroup.launch(
            HostedEngine, (making,), seats, concurrency=2, timeout=400
        ) as group:
            group.open().wait()
            width = 2 // replicas
            proxies = [
                Proxy(group, range(dp * width, (dp + 1) * width), "policy")
                for dp in range(replicas)
            ]
            compare(proxies, path, tmp_path / "saved")


def compare(proxies: list[Any], path: Path, out: Path) -> None:
    own = TorchEngine(small.definition(path), seed=0, device="cpu", dtype="float32",
                      trainable=True)  # fmt: skip
    loss, optimizer = small.LOSSES["lm"], small.OPTIMIZER

    def step(dp: int) -> Metrics:
        metrics = Metrics()
        batches = small.micro_batches(small.rollouts(), dp, len(proxies))
        weight = proxies[dp].accumulate(batches, loss, metrics)
        proxies[dp].optimizer_step(optimizer, weight, metrics)
        return metrics

    with ThreadPoolExecutor(len(proxies)) as threads:
        first, *_ = threads.map(step, range(len(proxies)))
        state = [proxy.state() for proxy in proxies]
        list(threads.map(step, range(len(proxies))))
        for proxy, kept in zip(proxies, state, strict=True):
            proxy.load_state(kept)
        list(threads.map(step, range(len(proxies))))
    for _ in range(2):
        metrics = Metrics()
        weight = own.accumulate(small.micro_batches(small.rollouts()), loss, metrics)
        own.optimizer_step(optimizer, weight, metrics)
    assert first.values().keys() == metrics.values().keys()
    samples = small.rollouts()
    for proxy in proxies:
        close(proxy.logprobs(samples), own.logprobs(samples), 1e-4)
    expected = split_experts(own.weights())
    found = {shard.name: shard.values for shard in proxies[0].shards()}
    assert set(found) == set(expected)
    for name, values in found.items():
        close(values, expected[name], 1e-4)
    proxies[0].save(out)
    assert set(small.stored(out)) == set(expected)
