"""In worker processes on Ray, one process and two that hold a model together."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from rlinf_graph.backends.ray.interruption import Interrupted, News
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Rollouts
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.ir.program import Await
from rlinf_graph.nodes.engine import Engine, Sampling
from rlinf_graph.nodes.execution import Execution, executing
from rlinf_graph.nodes.metric import Metrics
from tests.backends.ray.nearer import Nearer
from tests.engines.vllm.conftest import (
    KEY,
    MISSING,
    TEXTS,
    Ask,
    difference,
    read_model,
    said,
    write_weights,
)
from tests.engines.vllm.test_interruption import mixed_difference

pytestmark = [pytest.mark.engines, pytest.mark.timeout(400)]
CLOSE = 1e-4
SAMPLING = Sampling(samples=3, max_tokens=40)
CLUSTER = """name = "cores"
[[node_group]]
name = "cpu"
device = "cpu-core"
nodes = 1
devices_per_node = 2
cpus = 2
memory_gb = 4
"""


SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def another_replica() -> Iterator[None]:
    """What vLLM's CPU collectives leave of a replica that was killed, and hold while one lives."""
    names = [SHARED / f"-tp:0-[0-1]-cpushm_{rank}" for rank in range(2)]
    made = [name for name in names if not name.exists()]
    for name in made:
        name.touch()
    yield
    for name in made:
        name.unlink()


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "tp2"])
def proxy(
    request: pytest.FixtureRequest,
    ray_nodes: list[str],
    another_replica: None,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(MISSING)
    from rlinf_graph.backends.ray.hosted.host import HostedEngine, Making
    from rlinf_graph.backends.ray.hosted.proxy import Proxy
    from rlinf_graph.backends.ray.workers.group import WorkerGroup
    from rlinf_graph.backends.ray.workers.reservation import Reservation

    file = tmp_path_factory.mktemp("cluster") / "cores.toml"
    file.write_text(CLUSTER)
    size = request.param
    settings = NodePlan(engine="vllm", parallel=Parallel(tp=size))
    making = Making("vllm", ModelDef("policy", str(folder)), 0, False, settings)
    before = segments()
    with Reservation(load_cluster(str(file))) as reservation:
        seats = reservation.on(range(size), tensor_parallel=size)
        with WorkerGroup.launch(HostedEngine, (making,), seats, concurrency=2) as group:
            group.open().wait()
            assert segments() == before  # a kill would leave them
            yield Proxy(group, range(size), "policy")


def segments() -> set[str]:
    """Names of shared memory, of vLLM's collectives and of Python."""
    return {file.name for file in SHARED.iterdir() if re.search("cpushm|psm_", file.name)}


def test_samples_and_new_weights(proxy, ask: Ask, folder: Path, path: Path) -> None:
    made = proxy.generate(ask(*TEXTS), SAMPLING, KEY, 3)
    assert difference(read_model(folder), made) < CLOSE
    assert torch.equal(made.versions, torch.where(made.mask, 3, -1))
    assert proxy.generate(ask(*TEXTS), SAMPLING, KEY, 3).responses == made.responses
    new = write_weights(path, seed=1)
    proxy.update_weights(new.named_parameters(), 4)
    assert difference(new, proxy.generate(ask(*TEXTS), SAMPLING, KEY, 4)) < CLOSE
    proxy.offload()
    proxy.wake("weights")
    proxy.update_weights(read_model(folder).named_parameters(), 5)
    proxy.wake("cache")
    again = proxy.generate(ask(*TEXTS), SAMPLING, KEY, 3)
    assert again.responses == made.responses


def test_a_stream_that_is_aborted_and_gone_on_with(
    proxy, ask: Ask, folder: Path, path: Path
) -> None:
    stream = proxy.stream(ask(*TEXTS), SAMPLING, KEY, 0)
    first = next(stream)
    proxy.abort()
    parts = packed.in_order(packed.concat([first, *stream]))
    assert parts.index.tolist() == list(range(len(TEXTS) * 3))
    assert not parts.finished.all()
    assert parts.response_lengths.max() < SAMPLING.max_tokens
    new = write_weights(path, seed=1)
    proxy.update_weights(new.named_parameters(), 1)
    made = proxy.resume(parts, SAMPLING, KEY, 1)
    assert (made.finished | (made.response_lengths == SAMPLING.max_tokens)).all()
    for before, after in zip(said(parts), said(made), strict=True):
        assert torch.equal(after[: len(before)], before)
    assert {0, 1} <= set(made.versions.tolist())
    proxy.update_weights(read_model(folder).named_parameters(), 2)


def test_generation_that_takes_weights_on_its_way(
    proxy, ask: Ask, folder: Path, path: Path
) -> None:
    """They come before it has begun: it is asked to stop until it does."""
    new, line, metrics = write_weights(path, seed=1), Nearer(), Metrics()
    held = proxy.version
    news = News(cast("Any", line), Await("policy", "rollout", 1, "broadcast", interrupt=True))

    class Publishing:
        def generate(self, *given: Any) -> Rollouts:
            line.publish(held + 1)
            return proxy.generate(*given)

        def __getattr__(self, name: str) -> Any:
            return getattr(proxy, name)

    def adopt(_awaited: Await, version: int) -> None:
        proxy.update_weights(new.named_parameters(), version)

    interrupted = Interrupted(cast("Engine", Publishing()), news._awaited, news, adopt)
    long = Sampling(samples=32, max_tokens=200)
    with executing(Execution(metrics=metrics)):
        made = interrupted.generate(ask(*TEXTS), long, KEY, held)
    news.close()
    assert metrics.values()["rollout/interruptions"] == 1
    assert {-1, held + 1} <= set(made.versions.tolist()) <= {-1, held, held + 1}
    assert (made.finished | (made.response_lengths == 200)).all()
    assert mixed_difference({held: read_model(folder), held + 1: new}, made) < CLOSE
    proxy.update_weights(read_model(folder).named_parameters(), held + 2)


def test_weights_between_the_parts_of_a_stream(proxy, ask: Ask, folder: Path, path: Path) -> None:
    new, parts = write_weights(path, seed=1), []
    for part in proxy.stream(ask(*TEXTS), SAMPLING, KEY, 0):
        if not parts:
            proxy.update_weights(new.named_parameters(), 1)
        parts.append(part)
    whole = packed.in_order(packed.concat(parts))
    assert whole.index.tolist() == list(range(len(TEXTS) * 3))
    assert bool((parts[-1].versions == 1).any())
    proxy.update_weights(read_model(folder).named_parameters(), 2)


def test_errors_come_as_they_are_raised(proxy, ask: Ask, folder: Path) -> None:
    with pytest.raises(CompileError, match="no temperature below"):
        proxy.generate(ask("1"), Sampling(temperature=0.001), KEY, 0)
    with pytest.raises(CompileError, match="has no weight `nothing`"):
        proxy.update_weights([("nothing", torch.zeros(1))], 1)
    proxy.update_weights(read_model(folder).named_parameters(), 2)
    made = proxy.generate(ask(*TEXTS), SAMPLING, KEY, 2)
    assert difference(read_model(folder), made) < CLOSE
