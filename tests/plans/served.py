"""A pipeline whose reference follows the policy, with a KL penalty whose coefficient adapts."""

from pathlib import Path

import torch

from rlinf_graph import rl
from rlinf_graph.nodes.execution import execution

DATA = Path(__file__).parents[2] / "demo" / "arithmetic"

policy = rl.Model(str(Path(__file__).parent / "decoder"), weights="random", dtype="float64")
seen: dict[str, dict[int, dict[str, torch.Tensor]]] = {"trained": {}, "reference": {}}


def digits_right(answer: str, truth: str) -> float:
    """A reward that random answers earn now and then, so that gradients are not zero."""
    return sum(a == b for a, b in zip(answer, truth, strict=False)) / len(truth)


@rl.node(unit=rl.SAMPLE)
def summed(rewards: rl.TokenRewards) -> rl.Rewards:
    """One number a sample."""
    owner = torch.arange(len(rewards)).repeat_interleave(rewards.lengths)
    totals = rewards.values.new_zeros(len(rewards)).index_add(0, owner, rewards.values)
    return rl.Rewards(index=rewards.index, group=rewards.group, values=totals)


@rl.node(ports={"policy": rl.Port.TRAINED})
def watch(policy: rl.Model, reference: rl.Served, rollouts: rl.Rollouts) -> None:
    """Keep copies of what both ports hold in each iteration."""
    assert len(rollouts)
    for name, model in (("trained", policy), ("reference", reference)):
        param = "policy" if name == "trained" else name
        held = rl.engine_of(param, model).weights()
        seen[name][execution().iteration] = {k: v.detach().clone() for k, v in held.items()}
        rl.metric(f"weights/{name}", sum(float(v.double().abs().sum()) for v in held.values()))


@rl.pipeline
def moving_reference(
    every: int = 2, decay: float = 0.0, max_staleness: int = 0, lr: float = 1e-2, eps: float = 1e-8
) -> None:
    reference = policy.served("reference", decay=decay)
    prompts = rl.dataset(str(DATA / "train.jsonl"), batch=8)
    rollouts = rl.rollout(policy, prompts, samples=4, max_tokens=4, lengths=4)
    ref_logprobs = rl.logprobs(reference, rollouts)
    watch(policy, reference, rollouts)
    beta = rl.state(rl.constant(0.05))
    rewards = rl.verify(rollouts, digits_right)
    rewards = summed(rl.kl_penalty(rewards, rollouts, ref_logprobs, coefficient=beta))
    rl.carry(rl.adapt_kl(beta, rollouts, ref_logprobs, target=0.01, horizon=320), into=beta)
    weights = rl.train(
        policy,
        rollouts,
        rl.group_advantages(rewards),
        reference=ref_logprobs,
        loss=rl.GRPOLoss(kl=1e-1),
        minibatch=16,
        optimizer=rl.AdamW(lr=lr, eps=eps),
    )
    rl.sync(weights, into=policy, max_staleness=max_staleness)
    rl.sync(weights, into=reference, every=every)
