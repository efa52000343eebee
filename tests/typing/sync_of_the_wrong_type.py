"""Advantages are no weights."""

from rlinf_graph import rl

env = rl.Env("CartPole-v1", count=8)
policy = rl.Model("mlp:64x64", head="action", env=env)
critic = rl.Model("mlp:64x64", head="value", env=env)


@rl.pipeline
def wrong() -> None:
    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(env, observations, rl.act(policy, observations))

    start = rl.state(rl.reset(env))
    last, episode = rl.unroll(interact, start=start, length=80)
    rl.carry(last, into=start)
    advantages, _returns = rl.gae(episode.rewards, rl.values(critic, episode))
    rl.sync(advantages, into=policy)  # expect: reportArgumentType
