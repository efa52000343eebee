"""A loop's body that gives actions where the next step begins with observations."""

from rlinf_graph import rl

env = rl.Env("CartPole-v1", count=8)
policy = rl.Model("mlp:64x64", head="action", env=env)


@rl.pipeline
def wrong() -> None:
    def interact(observations: rl.Observations) -> rl.Actions:
        return rl.act(policy, observations)

    rl.unroll(interact, start=rl.reset(env), length=80)  # expect: reportArgumentType, reportCallIssue
