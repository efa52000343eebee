"""A pipeline that drops groups and tries again, in double precision."""

from pathlib import Path

from rlinf_graph import rl

DATA = Path(__file__).parents[2] / "demo" / "arithmetic"

policy = rl.Model(str(Path(__file__).parent / "decoder"), weights="random", dtype="float64")


def digits_right(answer: str, truth: str) -> float:
    """A reward that random answers earn now and then."""
    return sum(a == b for a, b in zip(answer, truth, strict=False)) / len(truth)


def alike(answer: str) -> float:
    """Every group is dropped."""
    return 1.0


@rl.pipeline
def small_dapo(
    groups: int = 8,
    batch: int = 6,
    tries: float = 1.0,
    rounds: int = 4,
    samples: int = 4,
    keep: int | None = None,
    minibatch: int = 16,
    hopeless: bool = False,
) -> None:
    def attempt(wanted: rl.Demand) -> tuple[rl.Rollouts, rl.Rewards]:
        prompts = rl.dataset(str(DATA / "train.jsonl"), batch=batch, wanted=wanted, tries=tries)
        rollouts = rl.rollout(policy, prompts, samples=samples, max_tokens=6, keep=keep)
        rewards = rl.verify(rollouts, alike if hopeless else digits_right)
        return rl.keep_mixed(rollouts, rewards)

    rollouts, rewards = rl.refill(attempt, groups=groups, rounds=rounds, acceptance=0.6)
    shaped = rl.overlong_penalty(rollouts, rewards, limit=6, buffer=3)
    weights = rl.train(
        policy,
        rollouts,
        rl.group_advantages(shaped),
        loss=rl.GRPOLoss(clip_high=0.28),
        minibatch=minibatch,
        optimizer=rl.AdamW(lr=1e-3),
    )
    rl.sync(weights, into=policy)
