"""What published runs show to fit is not refused; what arithmetic forbids is, with a true mend."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from rlinf_graph import rl
from rlinf_graph.compiler.compile import compile_graph
from rlinf_graph.compiler.schedule.memory import usable
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.work import Generate, Lengths, Train, Work
from tests.compiler.cost.conftest import make_case

LLAMA, LARGEST = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-405B"
DEEPSEEK, QWEN = "deepseek-ai/DeepSeek-V3", "Qwen/Qwen3-30B-A3B"
DISTILLED = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
PROMPT = 128
MEGATRON = {"engine": "megatron", "shard": "optimizer", "micro_batch": 1}
FSDP = {"engine": "torch", "shard": "fsdp", "micro_batch": 1}
AGAIN = {"recompute": True}


def train(samples: int, tokens: int, steps: int = 1) -> Train:
    """All samples as long as the run allows."""
    return Train(samples, Lengths.fixed(tokens, "declared"), 1, steps)


def sample(samples: int, tokens: int, group: int = 1) -> Generate:
    """All responses as long as the run allows."""
    return Generate(samples, PROMPT, Lengths.fixed(tokens - PROMPT, "declared"), group)


@dataclass(frozen=True)
class Run:
    """A node of a run that was published; its row stands in a file of `benchmarks/data`."""

    row: str
    model: str
    cluster: str
    work: Work
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


RUNS = (
    Run(
        "published_rl_steps.csv:2",
        LLAMA,
        "16xH100",
        train(2048, 4096, 4),
        MEGATRON | AGAIN | {"dp": 8, "pp": 2},
    ),
    Run("published_rl_steps.csv:2", LLAMA, "16xH100", sample(2048, 4096, 32), {"dp": 16}),
    Run(
        "published_rl_steps.csv:9",
        LLAMA,
        "8xH100",
        train(2048, 4096, 4),
        MEGATRON | AGAIN | {"dp": 8},
    ),
    Run(
        "published_rl_steps.csv:4",
        DEEPSEEK,
        "256xH100",
        train(512, 1536),
        MEGATRON | AGAIN | {"dp": 16, "pp": 16, "ep": 16},
    ),
    Run(
        "published_rl_steps.csv:4",
        DEEPSEEK,
        "256xH100",
        sample(512, 1536, 16),
        {"dp": 8, "tp": 32},
    ),
    Run(
        "published_rl_steps.csv:22",
        DEEPSEEK,
        "512xH100",
        train(512, 1536),
        MEGATRON | AGAIN | {"dp": 32, "pp": 16, "ep": 32},
    ),
    Run(
        "published_rl_steps.csv:6",
        QWEN,
        "32xH100",
        train(2048, 4096, 4),
        MEGATRON | {"dp": 16, "tp": 2, "ep": 8},
    ),
    Run(
        "published_rl_steps.csv:13",
        QWEN,
        "32xH100",
        train(2048, 4096, 4),
        MEGATRON | {"dp": 32, "ep": 8},
    ),
    Run("published_rl_steps.csv:13", QWEN, "32xH100", sample(2048, 4096, 32), {"dp": 16, "tp": 2}),
    Run(
        "published_rl_steps.csv:14",
        QWEN,
        "16xH100",
        train(2048, 4096, 4),
        MEGATRON | {"dp": 8, "pp": 2, "ep": 8},
    ),
    Run(
        "published_rl_steps.csv:17",
        DEEPSEEK,
        "128xGB200",
        train(512, 1536),
        MEGATRON | AGAIN | {"dp": 16, "pp": 8, "ep": 16},
    ),
    Run(
        "published_rl_steps.csv:48",
        DISTILLED,
        "8xH100",
        train(512, 28672),
        MEGATRON | AGAIN | {"dp": 4, "tp": 2},
    ),
    Run(
        "published_rl_steps.csv:50",
        "Qwen/Qwen2.5-Math-7B",
        "32xH20",
        train(8192, 30720, 16),
        FSDP | AGAIN | {"dp": 32},
    ),
    Run(
        "published_rl_steps.csv:91",
        "Qwen/Qwen3-8B",
        "8xH100",
        train(4, 1024),
        MEGATRON | {"dp": 2, "tp": 4},
    ),
    Run(
        "published_training.csv:190",
        LLAMA,
        "8xH100",
        train(128, 8192),
        MEGATRON | {"shard": "fsdp", "dp": 8},
    ),
    Run(
        "published_training.csv:191",
        LARGEST,
        "1024xH100",
        train(512, 8192),
        MEGATRON | AGAIN | {"dp": 8, "tp": 8, "pp": 8, "cp": 2, "vp": 8},
    ),
    Run(
        "published_training.csv:206",
        LLAMA,
        "8xH100-96GB",
        train(16, 8192),
        FSDP | {"recompute": "selective", "dp": 8, "micro_batch": 2},
    ),
    Run(
        "published_decode.csv:88",
        LARGEST,
        "8xH100",
        sample(256, 256),
        {"dtype": "float8", "tp": 8},
    ),
    Run(
        "published_decode.csv:124",
        LARGEST,
        "8xH100",
        sample(16, 22000),
        {"dtype": "float8", "tp": 8},
    ),
)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.row} {type(run.work).__name__}")
def test_what_was_published_to_run_fits(run: Run) -> None:
    """Micro-batch, recomputation and layout as in the row or its recipe; else the smallest need."""
    engine = {} if "engine" in run.settings else {"engine": "vllm"}
    made = make_case(run.work, cluster=run.cluster, model=run.model, **engine, **run.settings)
    assert made.memory <= usable(load_cluster(run.cluster).groups[0])


def correct(answer: str, truth: str) -> float:
    """A reward."""
    return float(answer == truth)


def grpo(name: str, batch: int = 64, tokens: int = 4096) -> Graph:
    """GRPO with 32 samples a prompt."""
    policy = rl.Model(name)

    @rl.pipeline
    def grpo() -> None:
        rollouts = rl.rollout(
            policy, rl.dataset("openai/gsm8k", batch=batch), samples=32, max_tokens=tokens
        )
        advantages = rl.group_advantages(rl.verify(rollouts, correct))
        rl.sync(rl.train(policy, rollouts, advantages, minibatch=batch * 8), into=policy)

    return grpo.build()


def evaluation(name: str) -> Graph:
    """Sampling alone."""
    policy = rl.Model(name)

    @rl.pipeline
    def judge() -> None:
        rl.evaluate(policy, rl.dataset("openai/gsm8k", split="test"), correct, max_tokens=2048)

    return judge.build()


@pytest.mark.parametrize(
    ("model", "cluster", "pins"),
    [  # published_rl_steps.csv:2, :13 and :48
        (LLAMA, "16xH100", ("pp 2 dp 8 engine megatron", "tp 1 dp 16")),
        (QWEN, "32xH100", ("ep 8 dp 32 engine megatron", "tp 2 dp 16")),
        (DISTILLED, "8xH100", ("tp 2 dp 4 engine megatron", "tp 2 dp 4")),
    ],
)
def test_whole_iterations_that_were_published_compile(
    model: str, cluster: str, pins: tuple[str, str]
) -> None:
    named = dict(zip(("train policy", "rollout policy"), pins, strict=True))
    assert compile_graph(grpo(model), load_cluster(cluster), pins=named).plan


IMPOSSIBLE: dict[str, tuple[Callable[[], Graph], str, float]] = {
    # Gigabytes that one device needs at least: weights alone, or 16 bytes of each in training.
    "7B in training on one device": (lambda: grpo("Qwen/Qwen2.5-7B"), "1xH100", 121),
    "70B in training on one device": (lambda: grpo("meta-llama/Llama-3.1-70B"), "1xH100", 1128),
    "70B in training on eight": (lambda: grpo("meta-llama/Llama-3.1-70B"), "8xH100", 141),
    "72B in training on eight of 40 GB": (lambda: grpo("Qwen/Qwen2.5-72B"), "8xA100-40GB", 145),
    "30B of experts in training on four of 48 GB": (lambda: grpo(QWEN), "4xL40S", 122),
    "671B in training on 64": (lambda: grpo(DEEPSEEK), "64xH100", 167),
    "405B in bfloat16 sampled on eight": (lambda: evaluation(LARGEST), "8xH100", 101),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_fit_is_refused_with_its_parts_and_a_mend_that_fits(name: str) -> None:
    made, cluster, least = IMPOSSIBLE[name]
    with pytest.raises(CompileError) as raised:
        compile_graph(made(), load_cluster(cluster))
    (found,) = raised.value.diagnostics
    assert found.code == "RG0401"
    parts = dict(re.findall(r"([a-z][a-z ]+) ([\d.]+)", found.notes[0].removeprefix("GB: ")))
    assert {"weights", "activations", "workspace"} <= set(parts)
    needed = re.search(r"needs ([\d.]+) GB", found.message)
    assert needed
    assert float(needed[1]) >= least
    assert sum(map(float, parts.values())) == pytest.approx(float(needed[1]), abs=0.5)
    larger = [re.match(r"(\d+) × (\S+): fits", text) for text in found.help]
    (mend,) = [match for match in larger if match]
    assert compile_graph(made(), load_cluster(f"{mend[1]}x{mend[2]}")).plan
