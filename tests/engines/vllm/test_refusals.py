from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.plan import NodePlan, Parallel
from rlinf_graph.nodes.registry import Member
from tests.engines.torch.conftest import write_model
from tests.engines.vllm.conftest import SIZES, Make, save_random


@pytest.mark.parametrize(
    ("options", "said_of_it"),
    [
        ({"head": "value"}, "has head `value`; vLLM samples from language models"),
        ({"path": "mlp:64x64"}, "has a small network; vLLM samples from language models"),
        ({"trainable": True}, "is to be trained, and vLLM only samples"),
        ({"dtype": "float64"}, "in float64; vLLM does float32 and bfloat16"),
        ({"path": "./absent"}, "cannot be read: ./absent"),
        ({"member": Member(0, NodePlan(parallel=Parallel(pp=2)))}, "it cannot do pp 2"),
        ({"member": Member(0, NodePlan(parallel=Parallel(cp=2)))}, "it cannot do cp 2"),
    ],
)
def test_what_is_refused_at_once(make: Make, options: dict[str, Any], said_of_it: str) -> None:
    with pytest.raises(CompileError, match=said_of_it) as raised:
        make(**options)
    assert raised.value.diagnostics[0].code == "RG0503"


def test_an_architecture_that_vllm_does_not_know(make: Make, tmp_path: Path) -> None:
    path = write_model(tmp_path / "rwkv", "xlm", **SIZES)
    with pytest.raises(CompileError, match="vLLM does not know the architecture") as raised:
        make(path)
    assert 'rollout="torch"' in str(raised.value)


def test_a_model_that_the_cpu_kernels_do_not_do(make: Make, tmp_path: Path) -> None:
    path = save_random(tmp_path / "narrow", hidden_size=64, num_attention_heads=4)
    with pytest.raises(CompileError, match="cannot be served by vLLM") as raised:
        make(path)
    assert "head_dim=16" in str(raised.value)


def test_no_weights_in_the_folder(make: Make, tmp_path: Path) -> None:
    path = write_model(tmp_path / "bare", **SIZES)
    with pytest.raises(CompileError, match="cannot be served by vLLM"):
        make(path)
