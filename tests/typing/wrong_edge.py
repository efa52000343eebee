"""A step takes actions, and is given observations."""

from rlinf_graph import rl

env = rl.Env("CartPole-v1", count=8)


@rl.pipeline
def wrong() -> None:
    rl.step(env, rl.reset(env), rl.reset(env))  # expect: reportArgumentType
