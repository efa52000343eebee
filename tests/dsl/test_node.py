"""`@rl.node` and `@rl.pipeline`: recorded inside a pipeline, run anywhere else."""

from __future__ import annotations

import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.dsl.node import definitions, node_types
from rlinf_graph.ir.batch import Pending
from rlinf_graph.ir.verify import verify
from tests.nodes.conftest import make_rollouts

policy = rl.Model("policy")


@rl.node(unit=rl.SAMPLE)
class LengthPenalty:
    """Lower the reward of long answers."""

    limit: int = 4096
    weight: float = 0.1

    def __call__(self, rollouts: rl.Rollouts, rewards: rl.Rewards) -> rl.Rewards:
        over = (rollouts.response_lengths - self.limit).clamp(min=0)
        return rewards.replace(values=rewards.values - self.weight * over)

    def work(self, rollouts: rl.Volume, rewards: rl.Volume) -> rl.Work:
        return rl.HostWork(rollouts.samples, 1e-6 * self.weight)


@rl.node
def halves(rewards: rl.Rewards, *, share: float = 0.5) -> tuple[rl.Rewards, rl.Rewards]:
    """Split rewards in two."""
    return (
        rewards.replace(values=rewards.values * share),
        rewards.replace(values=rewards.values * (1 - share)),
    )


def test_a_class_node_runs_outside_a_pipeline() -> None:
    rollouts = make_rollouts(["a", "b"], masks=[[0, 0, 1, 1, 1], [0, 0, 1]])
    rewards = rl.Rewards(index=rollouts.index, group=rollouts.group, values=torch.ones(2))
    made = LengthPenalty(limit=1, weight=0.25)(rollouts, rewards)
    assert made.values.tolist() == [0.5, 1.0]


def test_a_function_node_runs_outside_a_pipeline() -> None:
    rewards = rl.Rewards(index=torch.arange(1), group=torch.arange(1), values=torch.tensor([2.0]))
    first, second = halves(rewards, share=0.25)
    assert (first.values.tolist(), second.values.tolist()) == ([0.5], [1.5])


def test_nodes_are_recorded_inside_a_pipeline_with_their_options() -> None:
    @rl.pipeline
    def declared() -> None:
        rollouts = rl.rollout(policy, rl.dataset("org/data"), samples=2)
        rewards = rl.verify(rollouts, len)
        shaped = LengthPenalty(limit=8)(rollouts, rewards)
        first, second = halves(shaped)
        rl.group_advantages(first)
        rl.group_advantages(second)

    graph = verify(declared.build(), node_types())
    node = graph.node("LengthPenalty")
    assert node.options == (("limit", 8), ("weight", 0.1))
    assert [str(i.source) for i in node.inputs] == ["rollout policy", "verify"]
    assert node.span is not None
    assert node.span.source.strip() == "shaped = LengthPenalty(limit=8)(rollouts, rewards)"
    taken = [
        graph.node(name).inputs[0].source for name in ("group_advantages", "group_advantages 2")
    ]
    assert [str(source) for source in taken] == ["halves", "halves.1"]


def test_the_kernel_of_a_class_node_takes_inputs_and_options_by_name() -> None:
    rollouts = make_rollouts(["a"], masks=[[0, 0, 1, 1]])
    rewards = rl.Rewards(index=rollouts.index, group=rollouts.group, values=torch.ones(1))
    kernel = definitions["LengthPenalty"].kernel
    made = kernel(rollouts=rollouts, rewards=rewards, limit=1, weight=1.0)
    assert made.values.tolist() == [0.0]
    work = definitions["LengthPenalty"].work
    volume = rl.Volume(3, rl.Lengths.fixed(4, "declared"))
    assert work is not None
    call = rl.Call({"rollouts": volume, "rewards": volume}, {"limit": 1, "weight": 2.0})
    assert work(call) == rl.HostWork(3, 2e-6)


def test_a_misspelled_option_is_reported_where_it_stands() -> None:
    @rl.pipeline
    def declared() -> None:
        rl.rollout(policy, rl.dataset("org/data"), sampels=2)  # type: ignore[call-overload]  the test

    with pytest.raises(rl.CompileError) as caught:
        declared.build()
    (found,) = caught.value.diagnostics
    assert found.code == "RG0104"
    assert found.help == ("did you mean `samples`?",)
    assert found.span is not None
    assert "sampels=2" in found.span.source


def test_all_wrong_arguments_of_a_pipeline_are_collected() -> None:
    @rl.pipeline
    def declared() -> None:
        prompts = rl.dataset("org/data")
        rollouts = rl.rollout("policy", prompts)  # type: ignore[arg-type]  the test
        rl.verify(rollouts, len)
        rl.group_advantages(rollouts.columns)  # type: ignore[arg-type]  the test

    with pytest.raises(rl.CompileError) as caught:
        declared.build()
    assert [d.code for d in caught.value.diagnostics] == ["RG0104", "RG0101"]
    assert "not Rollouts.columns" in caught.value.diagnostics[1].message


def test_a_branch_on_a_value_not_computed_yet_is_reported() -> None:
    @rl.pipeline
    def declared() -> None:
        rollouts = rl.rollout(policy, rl.dataset("org/data"))
        if rl.verify(rollouts, len).values.mean() > 0.5:
            rl.verify(rollouts, len)

    with pytest.raises(rl.CompileError, match="RG0103") as caught:
        declared.build()
    span = caught.value.diagnostics[0].span
    assert span is not None
    assert span.source.strip().startswith("if rl.verify")


def test_a_pipeline_is_not_called() -> None:
    @rl.pipeline
    def declared() -> None:
        pass

    with pytest.raises(rl.CompileError, match="RG0108"):
        declared()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"sampels": 1}, "did you mean `samples`?"), ({"samples": "many"}, "takes int, not 'many'")],
)
def test_wrong_parameters_of_a_pipeline_are_reported(given: dict[str, object], said: str) -> None:
    @rl.pipeline
    def declared(samples: int = 2) -> None:
        pass

    with pytest.raises(rl.CompileError, match="RG0107") as caught:
        declared.build(**given)
    assert said in str(caught.value)


def test_fields_of_a_symbol_are_pending_and_others_do_not_exist() -> None:
    seen = []

    @rl.pipeline
    def declared() -> None:
        rollouts = rl.rollout(policy, rl.dataset("org/data"))
        seen.append(rollouts.logprobs)
        with pytest.raises(AttributeError, match="Rollouts has no field `rewrds`"):
            rollouts.rewrds  # type: ignore[attr-defined]  # noqa: B018  the test
        with pytest.raises(rl.CompileError, match="RG0103"):
            len(rollouts)

    declared.build()
    assert isinstance(seen[0], Pending)


def test_a_node_that_returns_no_batch_is_refused() -> None:
    with pytest.raises(rl.CompileError, match="RG0504"):

        @rl.node
        def broken(rewards: rl.Rewards) -> int:
            return 1


def test_a_declared_batch_type_travels_on_an_edge() -> None:
    class Grades(rl.Batch, granularity=rl.Granularity.SAMPLE):
        """Marks from A to F."""

        marks: list[str] = rl.objects()

    assert Grades(index=torch.arange(1), group=torch.arange(1), marks=["A"]).marks == ["A"]

    def graded(rollouts):  # type: ignore[no-untyped-def]  annotated below
        return Grades(index=rollouts.index, group=rollouts.group, marks=rollouts.responses)

    graded.__annotations__ = {"rollouts": rl.Rollouts, "return": Grades}
    assert rl.node(graded)(make_rollouts(["B"])).marks == ["B"]
    assert node_types()["graded"].outputs == ("Grades",)
