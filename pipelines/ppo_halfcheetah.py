"""PPO on MuJoCo's HalfCheetah: continuous actions, observations normalized as they come.

rlinf-graph run pipelines/ppo_halfcheetah.py --iterations 60
"""

from rlinf_graph import rl

cheetah = rl.Env("HalfCheetah-v5", count=8, normalize=True)
policy = rl.Model("mlp:64x64", head="action", env=cheetah)
critic = rl.Model("mlp:64x64", head="value", env=cheetah)


@rl.pipeline
def ppo(length: int = 128, epochs: int = 10, minibatch: int = 256, lr: float = 3e-4) -> None:
    def interact(observations: rl.Observations) -> tuple[rl.Observations, rl.Transitions]:
        return rl.step(cheetah, observations, rl.act(policy, observations))

    start = rl.state(rl.reset(cheetah))
    last, episode = rl.unroll(interact, start=start, length=length)
    rl.carry(last, into=start)
    advantages, returns = rl.gae(
        episode.rewards, rl.values(critic, episode), discount=0.99, trace=0.95, whiten=True
    )
    samples, targets, worths = rl.each_step(episode, advantages, returns)
    optimizer = rl.AdamW(lr=lr, eps=1e-5, max_grad_norm=0.5)
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
