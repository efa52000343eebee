"""PPO on CartPole: an actor and a critic, both small networks, and environments in a worker.

rlinf-graph compile pipelines/ppo_cartpole.py --explain
rlinf-graph run pipelines/ppo_cartpole.py --iterations 100 --backend ray
"""

from rlinf_graph import rl

cartpole = rl.Env("CartPole-v1", count=32)
policy = rl.Model("mlp:64x64", head="action", env=cartpole)
critic = rl.Model("mlp:64x64", head="value", env=cartpole)


@rl.pipeline
def ppo(
    length: int = 32,
    epochs: int = 10,
    minibatch: int = 256,
    lr: float = 1e-3,
    iterations: int = 100,
) -> None:
    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(cartpole, observations, rl.act(policy, observations))

    start = rl.state(rl.reset(cartpole))
    last, episode = rl.unroll(interact, start=start, length=length)
    rl.carry(last, into=start)
    values = rl.values(critic, episode)
    advantages, returns = rl.gae(episode.rewards, values, discount=0.98, trace=0.8, whiten=True)
    samples, targets, worths = rl.each_step(episode, advantages, returns)
    steps = iterations * epochs * (length * cartpole.count // minibatch)
    optimizer = rl.AdamW(lr=lr, schedule="linear", total_steps=steps, max_grad_norm=0.5)
    acted = rl.train(
        policy, samples, targets, loss=rl.PPOLoss(), epochs=epochs, minibatch=minibatch,
        optimizer=optimizer,
    )  # fmt: skip
    judged = rl.train(
        critic, samples, worths, loss=rl.ValueLoss(clip=None), epochs=epochs, minibatch=minibatch,
        optimizer=optimizer,
    )  # fmt: skip
    rl.sync(acted, into=policy)
    rl.sync(judged, into=critic)
    rl.play(policy, cartpole, episodes=100, every=20)
