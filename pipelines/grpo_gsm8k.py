"""GRPO of a 7B model on grade-school mathematics.

rlinf-graph compile pipelines/grpo_gsm8k.py --cluster 16xH100 --explain
"""

from rlinf_graph import rl

policy = rl.Model("Qwen/Qwen2.5-7B-Instruct")
reference = policy.frozen()


def is_correct(answer: str, truth: str) -> float:
    """Whether the last number of the answer is the one after `####` in the solution."""
    given = answer.replace(",", "").split()
    expected = truth.split("####")[-1].strip().replace(",", "")
    return float(bool(given) and given[-1].rstrip(".") == expected)


@rl.pipeline
def grpo(samples: int = 8, max_staleness: int = 1) -> None:
    prompts = rl.dataset("openai/gsm8k", batch=512)
    rollouts = rl.rollout(policy, prompts, samples=samples, max_tokens=8192)
    rewards = rl.verify(rollouts, is_correct)
    ref_logprobs = rl.logprobs(reference, rollouts)
    advantages = rl.group_advantages(rewards)
    weights = rl.train(
        policy,
        rollouts,
        advantages,
        reference=ref_logprobs,
        loss=rl.GRPOLoss(kl=1e-3),
        minibatch=1024,
        optimizer=rl.AdamW(lr=1e-6),
    )
    rl.sync(weights, into=policy, max_staleness=max_staleness)
    rl.evaluate(policy, rl.dataset("openai/gsm8k", split="test"), is_correct, every=20)
