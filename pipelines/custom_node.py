"""A node of one's own: long answers earn less.

rlinf-graph run pipelines/custom_node.py --init policy=runs/demo/warm_up/checkpoint/policy
"""

from rlinf_graph import rl

DATA = "demo/arithmetic"

policy = rl.Model(f"{DATA}/decoder", weights="random")


@rl.node(unit=rl.SAMPLE)
class LengthPenalty:
    """Lower the reward of answers longer than a limit."""

    limit: int = 4096
    weight: float = 0.1

    def __call__(self, rollouts: rl.Rollouts, rewards: rl.Rewards) -> rl.Rewards:
        over = (rollouts.response_lengths - self.limit).clamp(min=0)
        rl.metric("length_penalty/over", over)
        return rewards.replace(values=rewards.values - self.weight * over / self.limit)


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def grpo_brief(limit: int = 3) -> None:
    problems = rl.dataset(f"{DATA}/train.jsonl", batch=32, prompt_tokens=7)
    rollouts = rl.rollout(policy, problems, samples=8, max_tokens=6, lengths=4)
    rewards = rl.verify(rollouts, is_correct)
    rewards = LengthPenalty(limit=limit, weight=0.5)(rollouts, rewards)
    advantages = rl.group_advantages(rewards)
    weights = rl.train(policy, rollouts, advantages, optimizer=rl.AdamW(lr=1e-4))
    rl.sync(weights, into=policy)
