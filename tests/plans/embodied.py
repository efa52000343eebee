"""Loops, states and environments, in double precision."""

from rlinf_graph import rl

cartpole = rl.Env("CartPole-v1", count=8)
policy = rl.Model("mlp:16", head="action", env=cartpole, dtype="float64")
critic = rl.Model("mlp:16", head="value", env=cartpole, dtype="float64")


@rl.node
def weighed(observations: rl.Observations) -> None:
    """Numbers that tell any two batches of observations apart."""
    rl.metric("last/sum", observations.values.double(), reduce="sum")
    rl.metric("last/order", observations.values.double()[:, 0] * observations.index, reduce="sum")


@rl.pipeline
def embodied(length: int = 6, rounds: int = 2) -> None:
    """Loops in loops: each round is a stretch of steps, and what it says comes out joined."""

    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(cartpole, observations, rl.act(policy, observations))

    def stretch(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.unroll(interact, start=observations, length=length)

    start = rl.state(rl.reset(cartpole))
    last, episode = rl.unroll(stretch, start=start, length=rounds)
    rl.carry(last, into=start)
    weighed(last)
    advantages, returns = rl.gae(episode.rewards, rl.values(critic, episode))
    samples, targets, worths = rl.each_step(episode, advantages, returns)
    optimizer = rl.AdamW(lr=1e-2)
    acted = rl.train(
        policy, samples, targets, loss=rl.PPOLoss(), minibatch=48, epochs=2, optimizer=optimizer
    )
    judged = rl.train(
        critic, samples, worths, loss=rl.ValueLoss(), minibatch=48, optimizer=optimizer
    )
    rl.sync(acted, into=policy)
    rl.sync(judged, into=critic)
    rl.play(policy, cartpole, episodes=4, every=2)
