"""The pipeline of the hand-written plans: every kind of node, in double precision."""

from pathlib import Path

from rlinf_graph import rl

DATA = Path(__file__).parents[2] / "demo" / "arithmetic"

policy = rl.Model(str(Path(__file__).parent / "decoder"), weights="random", dtype="float64")
reference = policy.frozen()


def digits_right(answer: str, truth: str) -> float:
    """A reward that random answers earn now and then, so that gradients are not zero."""
    return sum(a == b for a, b in zip(answer, truth, strict=False)) / len(truth)


@rl.pipeline
def small_grpo(
    max_staleness: int = 0, epochs: int = 1, batch: int = 8, minibatch: int = 16
) -> None:
    prompts = rl.dataset(str(DATA / "train.jsonl"), batch=batch)
    rollouts = rl.rollout(policy, prompts, samples=4, max_tokens=4, lengths=4)
    rewards = rl.verify(rollouts, digits_right)
    ref_logprobs = rl.logprobs(reference, rollouts)
    advantages = rl.group_advantages(rewards)
    weights = rl.train(
        policy,
        rollouts,
        advantages,
        reference=ref_logprobs,
        loss=rl.GRPOLoss(kl=1e-2),
        minibatch=minibatch,
        epochs=epochs,
        optimizer=rl.AdamW(lr=1e-3),
    )
    rl.sync(weights, into=policy, max_staleness=max_staleness)
