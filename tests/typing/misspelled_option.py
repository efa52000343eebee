"""An option of an environment's node that it does not have."""

from rlinf_graph import rl

env = rl.Env("CartPole-v1", count=8)
policy = rl.Model("mlp:64x64", head="action", env=env)


@rl.pipeline
def wrong() -> None:
    rl.act(policy, rl.reset(env), greedily=True)  # expect: reportCallIssue
