"""DAPO (Yu et al. 2025) on sums with answers that can be checked.

Its four parts: the clip range is wider above than below; groups whose answers are all right or all
wrong are dropped, and others drawn in their place; every token counts the same; answers that come
near the limit of tokens cost something. There is no KL term.

rlinf-graph compile pipelines/dapo_arithmetic.py --explain
rlinf-graph run pipelines/grpo_arithmetic.py:warm_up --iterations 600 --out runs/warm_up
rlinf-graph run pipelines/dapo_arithmetic.py --init policy=runs/warm_up/checkpoint/policy
"""

from rlinf_graph import rl

DATA = "demo/arithmetic"
LIMIT = 6

policy = rl.Model(f"{DATA}/decoder", weights="random")


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


@rl.pipeline
def dapo(
    groups: int = 32,
    batch: int = 48,
    samples: int = 8,
    rounds: int = 4,
    acceptance: float = 0.5,
    iterations: int = 400,
) -> None:
    def attempt(wanted: rl.Demand) -> tuple[rl.Rollouts, rl.Rewards]:
        problems = rl.dataset(
            f"{DATA}/train.jsonl", batch=batch, prompt_tokens=7, wanted=wanted, tries=2
        )
        rollouts = rl.rollout(policy, problems, samples=samples, max_tokens=LIMIT, lengths=4)
        return rl.keep_mixed(rollouts, rl.verify(rollouts, is_correct))

    rollouts, rewards = rl.refill(attempt, groups=groups, rounds=rounds, acceptance=acceptance)
    shaped = rl.overlong_penalty(rollouts, rewards, limit=LIMIT, buffer=1)
    optimizer = rl.AdamW(
        lr=5e-4, betas=(0.9, 0.95), schedule="linear", warmup_steps=10, total_steps=2 * iterations
    )
    weights = rl.train(
        policy,
        rollouts,
        rl.group_advantages(shaped),
        loss=rl.GRPOLoss(clip=0.2, clip_high=0.28, normalize="token"),
        minibatch=groups * samples // 2,
        optimizer=optimizer,
    )
    rl.sync(weights, into=policy)
    held_out = rl.dataset(f"{DATA}/heldout.jsonl", shuffle=False, prompt_tokens=7)
    rl.evaluate(policy, held_out, is_correct, max_tokens=4, lengths=4, every=50, name="held_out")
