"""An iteration that overlaps with the next is never slower than one that does not."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from rlinf_graph import rl
from rlinf_graph.compiler.compile import accept_plan
from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.explain import explain
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.plan import Leaf, NodePlan, Parallel, PipelineRef, Plan, Split, SyncPlan

FREE = replace(CONSTANTS["gpu"].iteration, refit=1e9, matrix_s=0.0)


def seconds(tokens: int, samplers: int, chunks: int, staleness: int) -> float:
    """Of an iteration on 8 devices, with weights that arrive at once."""
    policy = rl.Model("Qwen/Qwen2.5-1.5B")

    @rl.pipeline
    def grpo() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=96, prompt_tokens=100)
        rollouts = rl.rollout(policy, prompts, samples=8, max_tokens=tokens, lengths=tokens / 2)
        rewards = rl.verify(rollouts, lambda answer, truth: 1.0)
        weights = rl.train(policy, rollouts, rl.group_advantages(rewards))
        rl.sync(weights, into=policy, max_staleness=1)

    trainers = 8 - samplers
    plan = Plan(
        pipeline=PipelineRef(file="", name="grpo"),
        mode="disaggregated",
        placement=Split(
            parts=(
                Leaf(node="rollout policy", devices=tuple(range(samplers))),
                Leaf(node="train policy", devices=tuple(range(samplers, 8))),
            )
        ),
        nodes={
            "rollout policy": NodePlan(
                engine="vllm", parallel=Parallel(dp=samplers), chunks=chunks
            ),
            "train policy": NodePlan(
                engine="megatron", parallel=Parallel(dp=trainers), micro_batch=1, chunks=chunks
            ),
        },
        syncs={"sync policy": SyncPlan(method="broadcast", staleness=staleness)},
    )
    compiled = accept_plan(grpo.build(), load_cluster("8xH100"), plan)
    free = {**CONSTANTS, "gpu": replace(CONSTANTS["gpu"], iteration=FREE)}
    costs = CostModel(compiled.graph, compiled.cluster, constants=free)
    return explain(replace(compiled, costs=costs)).seconds


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.sampled_from([256, 1024, 4096]),
    samplers=st.sampled_from([4, 6]),
    chunks=st.sampled_from([1, 2]),
)
def test_asynchronous_is_never_slower_on_the_same_devices(
    tokens: int, samplers: int, chunks: int
) -> None:
    synchronous, asynchronous = (seconds(tokens, samplers, chunks, lag) for lag in (0, 1))
    assert asynchronous <= synchronous * (1 + 1e-9)
