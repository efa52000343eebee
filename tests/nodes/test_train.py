"""What `train` hands to a loss, and what it checks of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlinf_graph import rl
from rlinf_graph.dsl.node import definitions
from rlinf_graph.nodes.train import tokenize_examples, train_batch
from tests.nodes.conftest import TableEngine, make_rollouts


def test_demonstrations_are_tokenized_for_the_model_that_learns_them() -> None:
    index = torch.tensor([4, 5])
    given = rl.Examples(
        index=index,
        group=index,
        prompts=["ab", [{"role": "user", "content": "c"}]],
        completions=["x", "yz"],
        columns=[{}, {}],
    )
    made = tokenize_examples(given, TableEngine({}))  # type: ignore[arg-type]  a part of an engine
    assert made.tokens.tolist() == [ord(c) for c in "abx\0cyz\0"]
    assert made.mask.tolist() == [False, False, True, True, False, True, True, True]
    assert made.lengths.tolist() == [4, 4]
    assert made.index.tolist() == [4, 5]


def test_advantages_of_samples_are_spread_over_their_tokens() -> None:
    rollouts = make_rollouts(["a", "b"], masks=[[0, 1], [0, 1, 1]])
    given = rl.Advantages(
        index=rollouts.index, group=rollouts.group, values=torch.tensor([2.0, -1.0])
    )
    batch = train_batch({"samples": rollouts, "targets": given})
    assert batch.advantages is not None
    assert batch.advantages.tolist() == [2, 2, -1, -1, -1]
    assert batch.returns is None


def test_state_values_lose_the_one_after_the_last_token() -> None:
    rollouts = make_rollouts(["a", "b"], masks=[[0, 1], [0, 1, 1]])
    named = {"index": rollouts.index, "group": rollouts.group, "lengths": rollouts.lengths}
    old = rl.Values(**named, values=torch.arange(7.0), mask=rollouts.mask)
    returns = rl.Returns(**named, values=torch.arange(5.0))
    batch = train_batch({"samples": rollouts, "targets": returns, "old_values": old})
    assert batch.old_values is not None
    assert batch.old_values.tolist() == [0, 1, 3, 4, 5]
    assert batch.returns is returns.values
    assert batch.advantages is None


POLICY = rl.Model("policy", name="policy")
CRITIC = rl.Model("critic", name="critic", head="value")


@rl.pipeline
def advantages_for_a_critic() -> None:
    rollouts = rl.rollout(POLICY, rl.dataset("org/data", batch=4), samples=4)
    advantages = rl.group_advantages(rl.verify(rollouts, len))
    rl.train(CRITIC, rollouts, advantages, loss=rl.ValueLoss())


@rl.pipeline
def policy_loss_on_a_critic() -> None:
    rollouts = rl.rollout(POLICY, rl.dataset("org/data", batch=4), samples=4)
    advantages = rl.group_advantages(rl.verify(rollouts, len))
    rl.train(CRITIC, rollouts, advantages)


@rl.pipeline
def kl_without_reference() -> None:
    rollouts = rl.rollout(POLICY, rl.dataset("org/data", batch=4), samples=4)
    advantages = rl.group_advantages(rl.verify(rollouts, len))
    rl.train(POLICY, rollouts, advantages, loss=rl.GRPOLoss(kl=0.1), epochs=0)


@rl.pipeline
def one_sample() -> None:
    rollouts = rl.rollout(POLICY, rl.dataset("org/data", batch=4))
    advantages = rl.group_advantages(rl.verify(rollouts, len))
    rl.train(POLICY, rollouts, advantages)


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        (advantages_for_a_critic, [("RG0101", "takes Returns for `targets`, not Advantages")]),
        (policy_loss_on_a_critic, [("RG0105", "needs a model with head lm, `critic` has head")]),
        (
            kl_without_reference,
            [("RG0102", "GRPOLoss of `train policy` needs `reference`"),
             ("RG0104", "`epochs` of `train policy` is 0")],
        ),
        (one_sample, [("RG0204", "compares the samples of a prompt, and there is one of each")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_calls_that_make_no_sense_are_reported(
    declared: rl.Pipeline, found: list[tuple[str, str]]
) -> None:
    graph = declared.build()
    checks: list[tuple[Any, Callable[..., Any] | None]] = [
        (node, definitions[node.type].check) for node in graph.nodes
    ]
    made = [d for node, check in checks if check for d in check(node, graph)]
    assert [d.code for d in made] == [code for code, _ in found]
    for diagnostic, (_, said) in zip(made, found, strict=True):
        assert said in diagnostic.message
        assert diagnostic.span is not None
        assert diagnostic.span.file == __file__


def test_group_advantages_with_one_sample_name_the_rollout() -> None:
    graph = one_sample.build()
    check = definitions["group_advantages"].check
    assert check is not None
    (found,) = check(graph.node("group_advantages"), graph)
    assert found.notes[0].startswith("`rollout policy` has samples=1 (")
    assert found.help == ("rl.rollout(..., samples=8)",)
