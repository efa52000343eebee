"""Mistakes that a type checker has to report, each on the line that names its rule."""

from rlinf_graph import rl

policy = rl.Model("org/policy")
critic = rl.Model("org/critic", head="worth")  # expect: reportArgumentType


@rl.node
class LengthPenalty:
    """Lower the reward of long answers."""

    limit: int = 4096

    def __call__(self, rollouts: rl.Rollouts, rewards: rl.Rewards) -> rl.Rewards:
        return rewards


class Grades(rl.Batch, granularity=rl.Granularity.SAMPLE):
    marks: list[str] = rl.objects()


@rl.pipeline
def wrong() -> None:
    prompts = rl.dataset("openai/gsm8k", batch=512)
    rl.dataset("openai/gsm8k", bach=512)  # expect: reportCallIssue
    rl.dataset()  # expect: reportCallIssue
    rollouts = rl.rollout(policy, prompts, samples="8")  # expect: reportArgumentType
    rewards = rl.verify(prompts, len)  # expect: reportArgumentType
    rl.verify(rollouts)  # expect: reportCallIssue
    rl.verify(rollouts, str)  # expect: reportArgumentType
    rl.group_advantages(rollouts)  # expect: reportArgumentType
    rl.group_advantages(rewards, normalize="max")  # expect: reportArgumentType
    LengthPenalty(limt=8)(rollouts, rewards)  # expect: reportCallIssue
    LengthPenalty(limit=8)(rewards, rollouts)  # expect: reportArgumentType, reportArgumentType
    LengthPenalty()(rollouts)  # expect: reportCallIssue
    values = rl.values(critic, rollouts)
    advantages, returns, more = rl.gae(rewards, values)  # expect: reportAssignmentType
    rl.gae(values, values)  # expect: reportArgumentType
    rl.kl_penalty(rewards, rollouts, rl.logprobs(policy, rollouts), beta=0.1)  # expect: reportArgumentType
    rl.kl_penalty(rewards, rollouts, rl.logprobs(policy.frozen(), rollouts))  # expect: reportCallIssue
    rl.rollout(policy.served("slow"), prompts)  # expect: reportArgumentType
    rl.sync(rl.train(policy, rollouts, advantages), into=policy.frozen())  # expect: reportArgumentType
    rl.train(policy.frozen(), rollouts, advantages)  # expect: reportArgumentType
    rl.train(policy, rollouts, rewards)  # expect: reportArgumentType
    rl.train(policy, rollouts, advantages, loss=rl.GRPOLoss(klip=0.2))  # expect: reportCallIssue
    rl.train(policy, rollouts, advantages, loss=rl.AdamW())  # expect: reportArgumentType
    rl.train(policy, rollouts, advantages, optimizer=rl.AdamW(lr="fast"))  # expect: reportArgumentType
    rl.sync(rollouts, into=policy)  # expect: reportArgumentType
    rl.sync(rl.train(policy, rollouts, advantages))  # expect: reportCallIssue
    rl.evaluate(policy.frozen(), prompts, len)  # expect: reportArgumentType
    rollouts.rewrds  # expect: reportAttributeAccessIssue
    Grades(index=rollouts.index, group=rollouts.group)  # expect: reportCallIssue
