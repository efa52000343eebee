"""GRPO on sums with answers that can be checked, after a warm-up on careless demonstrations.

rlinf-graph compile pipelines/grpo_arithmetic.py --explain
rlinf-graph run pipelines/grpo_arithmetic.py:warm_up --iterations 600 --out runs/warm_up
rlinf-graph run pipelines/grpo_arithmetic.py --init policy=runs/warm_up/checkpoint/policy
"""

from rlinf_graph import rl

DATA = "demo/arithmetic"

policy = rl.Model(f"{DATA}/decoder", weights="random")


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def warm_up(batch: int = 128, iterations: int = 600) -> None:
    examples = rl.examples(f"{DATA}/demonstrations.jsonl", batch=batch)
    optimizer = rl.AdamW(
        lr=1.5e-3, betas=(0.9, 0.95), schedule="linear", warmup_steps=20, total_steps=iterations
    )
    rl.train(policy, examples, loss=rl.SupervisedLoss(), optimizer=optimizer)


@rl.pipeline
def exam() -> None:
    problems = rl.dataset(f"{DATA}/heldout.jsonl", shuffle=False, prompt_tokens=7)
    rl.evaluate(policy, problems, is_correct, max_tokens=4, lengths=4, name="exact_match")


@rl.pipeline
def grpo(
    prompts: int = 64, samples: int = 8, max_staleness: int = 0, iterations: int = 400
) -> None:
    problems = rl.dataset(f"{DATA}/train.jsonl", batch=prompts, prompt_tokens=7)
    rollouts = rl.rollout(policy, problems, samples=samples, max_tokens=4, lengths=4)
    rewards = rl.verify(rollouts, is_correct)
    advantages = rl.group_advantages(rewards)
    optimizer = rl.AdamW(
        lr=5e-4, betas=(0.9, 0.95), schedule="linear", warmup_steps=10, total_steps=2 * iterations
    )
    weights = rl.train(
        policy,
        rollouts,
        advantages,
        loss=rl.GRPOLoss(),
        minibatch=prompts * samples // 2,
        optimizer=optimizer,
    )
    rl.sync(weights, into=policy, max_staleness=max_staleness)
    held_out = rl.dataset(f"{DATA}/heldout.jsonl", shuffle=False, prompt_tokens=7)
    rl.evaluate(policy, held_out, is_correct, max_tokens=4, lengths=4, every=50, name="held_out")
