"""GRPO with a reference on the demo's decoder: three device nodes of adjustable balance."""

import math

from rlinf_graph import rl

DATA = "demo/arithmetic"
VOCABULARY = 16
DECILES = [0.05 + 0.1 * i for i in range(10)]

policy = rl.Model(f"{DATA}/decoder", weights="random")
reference = policy.frozen()


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


def random_lengths(tokens: int) -> tuple[float, ...]:
    """Of responses by random weights, which end with any token by a chance of 1 in 16."""
    stay = math.log(1 - 1 / VOCABULARY)
    return tuple(float(min(tokens, math.ceil(math.log(1 - q) / stay))) for q in DECILES)


@rl.pipeline
def measured_grpo(
    batch: int = 64, samples: int = 8, tokens: int = 24, max_staleness: int = 0
) -> None:
    prompts = rl.dataset(f"{DATA}/train.jsonl", batch=batch, prompt_tokens=7)
    rollouts = rl.rollout(
        policy, prompts, samples=samples, max_tokens=tokens, lengths=random_lengths(tokens)
    )
    rewards = rl.verify(rollouts, is_correct)
    ref_logprobs = rl.logprobs(reference, rollouts)
    advantages = rl.group_advantages(rewards)
    weights = rl.train(
        policy,
        rollouts,
        advantages,
        reference=ref_logprobs,
        loss=rl.GRPOLoss(kl=1e-3),
        minibatch=batch * samples // 2,
    )
    rl.sync(weights, into=policy, max_staleness=max_staleness)
