"""Weights in the middle of generation: where a plan says so, what that needs, what it costs."""

from dataclasses import replace

import pytest

from rlinf_graph import rl
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.compiler import check_plan
from rlinf_graph.compiler.compile import Compiled, accept_plan
from rlinf_graph.compiler.explain import explain, render_text
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.plan import Leaf, NodePlan, Parallel, PipelineRef, Plan, Split, SyncPlan
from rlinf_graph.ir.program import Await
from rlinf_graph.nodes.registry import capabilities_of

policy = rl.Model("Qwen/Qwen2.5-1.5B")
APART = {"rollout": "0-3", "train": "4-7"}


@rl.pipeline
def grpo(
    max_staleness: int = 1, interrupt: bool = True, keep: int | None = None,
    evaluated: bool = False, batch: int = 96, samples: int = 8, prompt: int = 200,
    length: int = 1024, every: int = 1,
) -> None:  # fmt: skip
    prompts = rl.dataset("openai/gsm8k", batch=batch, prompt_tokens=prompt)
    rollouts = rl.rollout(
        policy, prompts, samples=samples, max_tokens=2 * length, lengths=length, keep=keep
    )
    advantages = rl.group_advantages(rl.verify(rollouts, lambda answer, truth: 1.0))
    weights = rl.train(policy, rollouts, advantages)
    rl.sync(weights, into=policy, max_staleness=max_staleness, every=every, interrupt=interrupt)
    if evaluated:
        rl.evaluate(policy, prompts, lambda answer, truth: 1.0, every=2)


@rl.pipeline
def dialogs() -> None:
    def turn(dialogs: rl.Dialogs) -> rl.Dialogs:
        return rl.reply(policy, dialogs, max_tokens=64, lengths=32)

    start = rl.open_dialogs(rl.dataset("openai/gsm8k", batch=32), samples=4)
    spoken = rl.unroll(turn, start=start, length=2)
    advantages = rl.group_advantages(rl.verify(spoken, lambda answer, truth: 1.0))
    weights = rl.train(policy, spoken, advantages)
    rl.sync(weights, into=policy, max_staleness=1, interrupt=True)


def planned(**parameters: object) -> Compiled:
    return compile_pipeline(grpo, "8xH100", pins=APART, parameters=parameters)


def apart(chunks: int = 1, engine: str = "vllm", **sync: object) -> Plan:
    first, second = (0, 1, 2, 3), (4, 5, 6, 7)
    return Plan(
        pipeline=PipelineRef(file="", name="grpo"),
        mode="disaggregated",
        placement=Split(
            parts=(
                Leaf(node="rollout policy", devices=first),
                Leaf(node="train policy", devices=second),
            )
        ),
        nodes={
            "rollout policy": NodePlan(engine=engine, parallel=Parallel(dp=4), chunks=chunks),
            "train policy": NodePlan(engine="megatron", parallel=Parallel(dp=4), micro_batch=1),
        },
        syncs={"sync policy": SyncPlan(method="broadcast", **sync)},  # pyright: ignore[reportArgumentType]  # by keyword
    )


def accepted(plan: Plan, **parameters: object) -> Compiled:
    return accept_plan(grpo.build(**parameters), load_cluster("8xH100"), plan)


def refused(plan: Plan, **parameters: object) -> Diagnostic:
    with pytest.raises(CompileError) as caught:
        accepted(plan, **parameters)
    (found,) = caught.value.diagnostics
    assert found.code == "RG0307"
    return found


def awaits(ready: Compiled, node: str) -> list[bool]:
    from rlinf_graph.backends.ray.waiting import every_instruction

    body = ready.program.group(node).body
    return [i.interrupt for i in every_instruction(body) if isinstance(i, Await)]


def test_the_compiler_says_so_where_weights_can_come_meanwhile() -> None:
    ready = planned()
    assert ready.plan.syncs["sync policy"].staleness == 1
    assert ready.plan.syncs["sync policy"].interrupt
    assert awaits(ready, "rollout policy") == [True]
    assert not planned(interrupt=False).plan.syncs["sync policy"].interrupt


def test_on_policy_there_is_nothing_to_interrupt() -> None:
    ready = compile_pipeline(grpo, "1xH100")
    assert ready.plan.syncs["sync policy"].staleness == 0
    assert not ready.plan.syncs["sync policy"].interrupt
    assert awaits(ready, "rollout policy") == [False]


def test_evaluations_keep_one_version() -> None:
    ready = planned(evaluated=True)
    assert awaits(ready, "rollout policy") == [True]
    assert awaits(ready, "evaluate policy") == [False]


def test_a_plan_may_say_so_by_itself() -> None:
    ready = accepted(apart(staleness=1, interrupt=True), interrupt=False)
    assert awaits(ready, "rollout policy") == [True]


def test_at_staleness_0_it_is_refused() -> None:
    found = refused(apart(staleness=0, interrupt=True))
    assert found.message.endswith("at staleness 0: no newer weights come")


def test_those_that_finish_first_are_not_gone_on_with() -> None:
    found = refused(apart(staleness=1, interrupt=True), keep=4)
    assert "returns those that finish first" in found.message
    assert found.help == ("leave out `keep`", "interrupt=False in rl.sync")


def test_an_engine_has_to_go_on_with_what_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        check_plan,
        "capabilities_of",
        lambda name: replace(capabilities_of(name), interrupts=name == "torch"),
    )
    found = refused(apart(staleness=1, interrupt=True))
    assert "`vllm` does not go on with responses" in found.message
    assert found.help == ("an engine that does: torch",)


def test_something_has_to_generate() -> None:
    ready = compile_pipeline(dialogs, "8xH100", pins={"reply": "0-3", "train": "4-7"})
    syncs = {"sync policy": SyncPlan(method="broadcast", staleness=1, interrupt=True)}
    plan = ready.plan.model_copy(update={"syncs": syncs})
    with pytest.raises(CompileError) as caught:
        compile_pipeline(dialogs, "8xH100", plan=plan)
    (found,) = caught.value.diagnostics
    assert found.code == "RG0307"
    assert "nothing that `sync policy` delivers to can be interrupted" in found.message


@pytest.mark.parametrize("engine", ["vllm", "torch"])
@pytest.mark.parametrize(
    ("batch", "samples", "prompt", "length"),
    [(96, 8, 200, 1024), (16, 64, 64, 1024), (4, 192, 100, 4096)],
)
def test_what_was_said_is_read_again(
    batch: int, samples: int, prompt: int, length: int, engine: str
) -> None:
    """Never faster than the operations allow, and not many times slower: prefill is efficient."""
    sizes = {"batch": batch, "samples": samples, "prompt": prompt, "length": length}
    ready = accepted(apart(engine=engine, staleness=1, interrupt=True), **sizes)
    report = explain(ready)
    (edge,) = report.feedback
    shared = samples if engine == "vllm" else 1
    parameters, sequences, tokens = 1.5e9, batch * samples / 4, prompt / shared + length / 2
    least = 2 * parameters * sequences * tokens / 989e12
    assert least < edge.again_s < 6 * least
    assert "1 interrupts 3 while it generates: " in render_text(report)
    plain = explain(accepted(apart(engine=engine, staleness=1), interrupt=False, **sizes))
    assert plain.feedback[0].again_s == 0
    assert not plain.feedback[0].interrupts
    longer = report.rows[2].estimate.busy_s - plain.rows[2].estimate.busy_s
    assert longer == pytest.approx(edge.again_s, rel=1e-6)


def test_an_evaluation_is_not_named_among_the_interrupted() -> None:
    report = explain(planned(evaluated=True))
    (edge,) = report.feedback
    names = {row.number: row.name for row in report.rows}
    assert sorted(names[n] for n in edge.targets) == ["evaluate policy", "rollout policy"]
    assert [names[n] for n in edge.interrupts] == ["rollout policy"]


def test_rarer_deliveries_and_chunks_cost_less() -> None:
    def again(chunks: int = 1, **parameters: int) -> float:
        ready = accepted(apart(chunks, staleness=1, interrupt=True), **parameters)
        return explain(ready).feedback[0].again_s

    whole = again()
    assert again(max_staleness=2, every=2) == pytest.approx(whole / 2)
    assert whole / 2 < again(2) < whole, "half as many are under way, and read with less at once"
