"""What Megatron does not do is said before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.engines.megatron.capabilities import CAPABILITIES
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.nodes.capabilities import Layout, layout_refusal
from tests.engines.megatron import work
from tests.engines.megatron.conftest import NEEDS
from tests.engines.megatron.crew import Crew
from tests.engines.megatron.test_parity import name_of


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"parallel": Parallel(pp=2, vp=2)}, "it cannot do vp 2"),
        ({"parallel": Parallel(dp=2, ep=2)}, "it cannot do ep 2"),
        ({"parallel": Parallel(dp=2, shard="fsdp")}, "it cannot do fsdp 2"),
        ({"recompute": "selective"}, "it cannot recompute selectively"),
    ],
)
def test_a_layout_is_refused_by_its_capabilities(
    kind: str, settings: dict[str, Any], reason: str
) -> None:
    layout = Layout(NodePlan(engine="megatron", **settings), tied=True, mixture=True)
    assert layout_refusal(CAPABILITIES.kinds[kind], layout) == reason


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_all_that_it_does_is_allowed(kind: str) -> None:
    parallel = Parallel(tp=2, pp=2, cp=2, dp=2, shard="optimizer")
    layout = Layout(NodePlan(engine="megatron", parallel=parallel, recompute=True), True, True)
    assert layout_refusal(CAPABILITIES.kinds[kind], layout) is None


def changed(path: Path, out: Path, **settings: Any) -> Path:
    out.mkdir()
    for file in path.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | settings))
    return out


@pytest.mark.parametrize(
    ("settings", "parallel", "said"),
    [
        ({"model_type": "gemma"}, {}, "does not know `gemma`"),
        ({"attention_bias": True}, {}, "has no attention biases"),
        ({"hidden_act": "gelu"}, {}, "has no the activation gelu"),
        ({"num_hidden_layers": 5}, {}, "lacks the weight `model.layers.4."),
        ({"intermediate_size": 65}, {}, "of shape [64, 32], not [65, 32]"),
        ({}, {"tp": 4}, "tp 4 does not divide the 2 key-value heads"),
        ({}, {"pp": 3}, "pp 3 does not divide the 4 layers"),
        ({}, {"dp": 2, "ep": 2}, "ep is 1 or cp, 1, not 2"),
    ],
    ids=name_of,
)
@NEEDS
@pytest.mark.engines
@pytest.mark.timeout(600)
def test_a_model_or_layout_is_refused_with_its_reason(
    crew: Crew,
    model: Callable[..., Path],
    tmp_path: Path,
    settings: dict[str, Any],
    parallel: dict[str, Any],
    said: str,
) -> None:
    path = changed(model("llama"), tmp_path / "changed", **settings)
    (found,) = crew.run(1, work.said, path, parallel, {})
    assert "RG0503" in found
    assert said in found


def test_the_version_is_pinned_alike_everywhere() -> None:
    version, root = "0.16.1", Path(__file__).parents[3]
    pin = f"megatron-core=={version}"
    assert (root / "requirements" / "megatron.txt").read_text().split() == [pin]
    assert f'megatron = ["{pin}"]' in (root / "pyproject.toml").read_text()
    assert all(support.packages == (pin,) for support in CAPABILITIES.kinds.values())
    adapter = root / "rlinf_graph" / "engines" / "megatron" / "adapter.py"
    assert f'VERSION = "{version}"' in adapter.read_text()


def test_only_one_file_touches_megatron() -> None:
    folder = Path(__file__).parents[3] / "rlinf_graph" / "engines" / "megatron"
    found = [f.name for f in folder.glob("*.py") if "megatron.core" in f.read_text()]
    assert found == ["adapter.py"]
