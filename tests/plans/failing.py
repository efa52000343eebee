"""A pipeline whose nodes fail on demand."""

from __future__ import annotations

import threading
from pathlib import Path

from rlinf_graph import rl

DATA = Path(__file__).parents[2] / "demo" / "arithmetic"

policy = rl.Model(str(Path(__file__).parent / "decoder"), weights="random")


class Judged(rl.Batch):
    """Rewards with a remark of any type."""

    values: object = rl.per_sample()
    notes: list[object] = rl.objects()


@rl.node
class Trouble:
    """Passes rewards on, or does something that ends the run."""

    kind: str = "none"

    def __call__(self, rollouts: rl.Rollouts, rewards: rl.Rewards) -> Judged:
        if self.kind == "raise":
            raise ValueError("no such answer")
        notes: list[object] = [None] * len(rewards)
        return Judged(index=rewards.index, group=rewards.group, values=rewards.values, notes=notes)


@rl.node
def plain(judged: Judged) -> rl.Rewards:
    return rl.Rewards(index=judged.index, group=judged.group, values=judged.values)


class Remarked(rl.Advantages):
    """With a remark of any type."""

    notes: list[object] = rl.objects()


@rl.node
class Remark:
    """Remarks something that cannot leave its process, or nothing."""

    kind: str = "none"

    def __call__(self, advantages: rl.Advantages) -> Remarked:
        notes: list[object] = [None] * len(advantages)
        if self.kind == "unpicklable":
            notes[0] = threading.Lock()
        a = advantages
        return Remarked(index=a.index, group=a.group, values=a.values, notes=notes)


def judge(answer: str, truth: str) -> float:
    return float(answer == truth)


def unsure(answer: str, truth: str) -> float:
    raise LookupError(f"no rule for {answer!r}")


@rl.pipeline
def troubled(kind: str = "none") -> None:
    prompts = rl.dataset(str(DATA / "train.jsonl"), batch=4)
    rollouts = rl.rollout(policy, prompts, samples=2, max_tokens=4, lengths=4)
    rewards = rl.verify(rollouts, unsure if kind == "reward" else judge)
    rewards = plain(Trouble(kind=kind)(rollouts, rewards))
    advantages = Remark(kind=kind)(rl.group_advantages(rewards))
    weights = rl.train(policy, rollouts, advantages)
    rl.sync(weights, into=policy)
