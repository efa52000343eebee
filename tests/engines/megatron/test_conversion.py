"""Weights go from transformers to Megatron and back without a bit changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlinf_graph.engines.megatron.architecture import architecture_of
from rlinf_graph.engines.megatron.conversion import weights_of
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.nodes.engine import Shard
from tests.engines.megatron import small, work
from tests.engines.megatron.conftest import NEEDS
from tests.engines.megatron.crew import Crew
from tests.engines.megatron.test_parity import close, cut, name_of, with_head

pytestmark = [NEEDS, pytest.mark.engines, pytest.mark.timeout(600)]


@pytest.mark.parametrize("family", small.FAMILIES)
def test_names_and_shapes_are_those_of_a_checkpoint(
    model: Callable[..., Path], family: str
) -> None:
    path = model(family)
    made = architecture_of(AutoConfig.from_pretrained(path), small.definition(path))
    assert weights_of(made) == {n: tuple(w.shape) for n, w in small.stored(path).items()}


LAYOUTS = [{}, {"tp": 2}, {"pp": 2}, {"dp": 2}, {"cp": 2}, {"tp": 2, "pp": 2}]
CASES = [(family, each) for family in ("llama", "qwen2", "tied", "mixture") for each in LAYOUTS]


@pytest.mark.parametrize(
    ("family", "parallel"), [*CASES, ("mixture", {"cp": 2, "ep": 2})], ids=name_of
)
def test_a_checkpoint_comes_back_bit_by_bit(
    crew: Crew, model: Callable[..., Path], tmp_path: Path, family: str, parallel: dict[str, Any]
) -> None:
    path, world = model(family), 1
    for axis in ("tp", "pp", "cp", "dp"):
        world *= parallel.get(axis, 1)
    outs = [tmp_path / f"written-{dp}" for dp in range(parallel.get("dp", 1))]
    each = world // len(outs)
    found: list[list[Shard]] = crew.run(world, work.save, path, parallel, {}, tmp_path / "written")
    expected = small.stored(path)
    for replica in range(len(outs)):
        seen = {name: torch.zeros(w.shape, dtype=torch.int64) for name, w in expected.items()}
        for shard in (s for shards in found[replica * each :][:each] for s in shards):
            assert torch.equal(shard.values, cut(shard, expected[shard.name]))
            cut(shard, seen[shard.name]).add_(1)
        assert all(bool((times == 1).all()) for times in seen.values())
        written = small.stored(tmp_path / f"written-{replica}")
        assert set(written) == set(expected)
        assert all(torch.equal(written[name], w) for name, w in expected.items())
    generation = "generation_config.json"
    assert (tmp_path / "written-0" / generation).read_text() == (path / generation).read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "written-0")
    assert again.config.model_type == AutoConfig.from_pretrained(path).model_type


def test_a_critic_is_written_for_the_torch_engine(
    crew: Crew, model: Callable[..., Path], tmp_path: Path
) -> None:
    path = with_head(model("qwen2"), tmp_path / "critic")
    crew.run(2, work.save, path, {"tp": 2}, {"head": "value"}, tmp_path / "written")
    found = small.stored(tmp_path / "written-0")
    assert all(torch.equal(found[name], w) for name, w in small.stored(path).items())
    critics = [
        TorchEngine(small.definition(at, "value"), seed=0, device="cpu", dtype="float32",
                    trainable=False).values(small.rollouts())
        for at in (path, tmp_path / "written-0")
    ]  # fmt: skip
    assert torch.equal(*critics)


@pytest.mark.parametrize("parallel", [{"tp": 2}, {"pp": 2}], ids=name_of)
def test_whole_weights_are_taken_over_by_name(
    crew: Crew, model: Callable[..., Path], parallel: dict[str, Any]
) -> None:
    path, other = model("tied"), model("tied", initializer_range=0.1)
    expected = TorchEngine(small.definition(other), seed=0, device="cpu", dtype="float32",
                           trainable=False).logprobs(small.rollouts())  # fmt: skip
    for found in crew.run(2, work.update, path, parallel, small.stored(other)):
        close(found, expected, 1e-5)
