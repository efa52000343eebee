"""A loop whose length is not said."""

from rlinf_graph import rl

env = rl.Env("CartPole-v1", count=8)
policy = rl.Model("mlp:64x64", head="action", env=env)


@rl.pipeline
def wrong() -> None:
    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(env, observations, rl.act(policy, observations))

    rl.unroll(interact, start=rl.reset(env))  # expect: reportCallIssue
