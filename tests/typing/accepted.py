"""Pipelines that a type checker has to accept."""

from typing import Literal, assert_type

from torch import Tensor

from rlinf_graph import rl

policy = rl.Model("org/policy")
reference = policy.frozen()
critic = rl.Model("org/critic", head="value")
judge = rl.Model("org/judge", head="score")
refreshed = policy.served("refreshed")
average = judge.served("average", decay=0.995)


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.node
class LengthPenalty:
    """Lower the reward of long answers."""

    limit: int = 4096
    weight: float = 0.1

    def __call__(self, rollouts: rl.Rollouts, rewards: rl.Rewards) -> rl.Rewards:
        over = (rollouts.response_lengths - self.limit).clamp(min=0)
        return rewards.replace(values=rewards.values - self.weight * over)


@rl.node(unit=rl.SAMPLE)
class Bonus:
    """Raise every reward."""

    by: float = 1.0

    def __call__(self, rewards: rl.Rewards) -> rl.Rewards:
        return rewards.replace(values=rewards.values + self.by)


@rl.node(unit=rl.GROUP)
def halved(rewards: rl.Rewards, *, share: float = 0.5) -> rl.Rewards:
    return rewards.replace(values=rewards.values * share)


class Grades(rl.Batch, granularity=rl.Granularity.SAMPLE):
    marks: list[str] = rl.objects()


@rl.node
def grade(rollouts: rl.Rollouts) -> Grades:
    return Grades(index=rollouts.index, group=rollouts.group, marks=rollouts.responses)


@rl.struct
class Distance:
    """A loss of a user's own."""

    weight: float = 1.0

    @property
    def reads(self) -> Literal["logprobs", "values"]:
        return "values"

    @property
    def entropy(self) -> bool:
        return False

    @property
    def corrects_staleness(self) -> bool:
        return False

    def needs(self) -> dict[str, str]:
        return {}

    def __call__(
        self, outputs: rl.Outputs, batch: rl.TrainBatch, metrics: rl.Metrics
    ) -> "tuple[Tensor, float]":
        assert outputs.values is not None
        rl.emit(metrics, "distance/largest", outputs.values, reduce="max")
        return self.weight * outputs.values[batch.samples.mask].abs().sum(), 1.0


@rl.pipeline
def grpo(samples: int = 8) -> None:
    prompts = rl.dataset("openai/gsm8k", batch=512)
    rollouts = rl.rollout(policy, prompts, samples=samples, stop=("\n",))
    rewards = rl.verify(rollouts, is_correct)
    shaped = LengthPenalty(limit=8, weight=0.5)(rollouts, rewards)
    assert_type(shaped, rl.Rewards)
    assert_type(Bonus(by=2.0)(shaped), rl.Rewards)
    assert_type(halved(shaped, share=0.1), rl.Rewards)
    assert_type(grade(rollouts).marks, list[str])
    assert_type(rl.logprobs(reference, rollouts), rl.ReferenceLogprobs)
    assert_type(rl.logprobs(policy, rollouts), rl.ProximalLogprobs)
    advantages = rl.group_advantages(shaped)
    weights = rl.train(
        policy,
        rollouts,
        advantages,
        reference=rl.logprobs(reference, rollouts),
        loss=rl.GRPOLoss(kl=1e-3, clip_high=0.28),
        optimizer=rl.AdamW(lr=1e-6),
    )
    assert_type(weights, rl.Weights)
    rl.sync(weights, into=policy, max_staleness=1)
    rl.evaluate(policy, rl.dataset("openai/gsm8k", split="test"), is_correct, every=20)


@rl.pipeline
def ppo() -> None:
    rollouts = rl.rollout(policy, rl.dataset("openai/gsm8k", batch=512))
    rewards = rl.score(judge, rollouts)
    rewards = rl.kl_penalty(rewards, rollouts, rl.logprobs(reference, rollouts), beta=0.05)
    values = rl.values(critic, rollouts)
    advantages, returns = rl.gae(rewards, values, trace=0.95)
    assert_type(advantages, rl.TokenAdvantages)
    assert_type(returns, rl.Returns)
    rl.sync(rl.train(policy, rollouts, advantages, loss=rl.PPOLoss(), epochs=4), into=policy)
    trained = rl.train(critic, rollouts, returns, old_values=values, loss=rl.ValueLoss(clip=None))
    rl.sync(trained, into=critic)


@rl.pipeline
def adaptive() -> None:
    rollouts = rl.rollout(policy, rl.dataset("openai/gsm8k", batch=512))
    against = rl.logprobs(refreshed, rollouts)
    assert_type(against, rl.ReferenceLogprobs)
    beta = rl.state(rl.constant(0.05))
    assert_type(beta, rl.Scalars)
    rewards = rl.score(average, rollouts)
    shaped = rl.kl_penalty(rewards, rollouts, against, coefficient=beta)
    assert_type(shaped, rl.TokenRewards)
    rl.carry(rl.adapt_kl(beta, rollouts, against, target=6.0, horizon=1e4), into=beta)
    advantages, _ = rl.gae(shaped, rl.values(critic, rollouts))
    weights = rl.train(policy, rollouts, advantages, loss=rl.PPOLoss())
    rl.sync(weights, into=policy)
    rl.sync(weights, into=refreshed, every=50)


env = rl.Env("CartPole-v1", count=8)
actor = rl.Model("mlp:64x64", head="action", env=env)
judged = rl.Model("mlp:64x64", head="value", env=env)


@rl.pipeline
def embodied() -> None:
    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(env, observations, rl.act(actor, observations))

    start = rl.state(rl.reset(env))
    last, episode = rl.unroll(interact, start=start, length=80)
    assert_type(last, rl.Observations)
    assert_type(episode, rl.Transitions)
    assert_type(episode.rewards, rl.StepRewards)
    rl.carry(last, into=start)
    values = rl.values(judged, episode)
    assert_type(values, rl.StepValues)
    advantages, returns = rl.gae(episode.rewards, values, discount=0.99)
    rl.sync(rl.train(actor, episode, advantages, loss=rl.PPOLoss()), into=actor)
    rl.sync(rl.train(judged, episode, returns, loss=rl.ValueLoss()), into=judged)


@rl.pipeline
def supervised() -> None:
    demonstrations = rl.examples("org/demonstrations", batch=64)
    rl.train(policy, demonstrations, loss=rl.SupervisedLoss())
    rl.train(critic, demonstrations, loss=Distance(weight=2.0))


assert_type(grpo, rl.Pipeline)
