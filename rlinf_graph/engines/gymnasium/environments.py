"""Environments of gymnasium: copies in one process, stepped in groups.

The compiler asks for their spaces: torch is loaded when they are made, not before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from rlinf_graph.engines.gymnasium.copies import Array, Copies, Step
from rlinf_graph.engines.gymnasium.making import make_one, make_several
from rlinf_graph.engines.gymnasium.normalize import Moments
from rlinf_graph.engines.gymnasium.spaces import action_space, observation_space
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Actions, Observations, Transitions
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import EnvDef, Space
from rlinf_graph.nodes.execution import metric

if TYPE_CHECKING:
    from torch import Tensor


class GymnasiumEnvironments:
    """Copies of an environment, numbered from 0, in groups of equal size that step together.

    A copy's seed is a hash of the run's seed, the environment's name and the copy's number: its
    episodes do not depend on how copies are grouped. With `normalize` they do: running moments are
    kept for all copies of this process together, and move on whenever a group takes a step.

    Args:
        env: its path is an id that `gymnasium.make` takes, or a function that makes one.
        seed: of the run.
        groups: of equal size, each in a vector environment of its own.

    Raises:
        CompileError: RG0510, for an environment that cannot be made or whose spaces no batch can
            hold; RG0403, for groups that do not divide the copies.
    """

    def __init__(self, env: EnvDef, *, seed: int, groups: int) -> None:
        import torch

        if groups < 1 or env.count % groups:
            message = f"{groups} groups do not divide the {env.count} copies of `{env.name}`"
            raise fail("RG0403", message, env.span)
        self.env = env
        self._seed = seed
        one = make_one(env)
        self._spec = one.spec if isinstance(env.path, str) else None
        seen, _ = self._spaces = _spaces(env, one)
        self._moments = Moments(seen.shape) if env.normalize else None
        one.close()
        self._size = env.count // groups
        self._index = torch.arange(env.count)
        self._groups: list[Copies] = []  # made by the first reset: an evaluation needs none
        self._examined: Copies | None = None
        self._known: dict[bytes, Sequence[Copies]] = {}

    @staticmethod
    def spaces(env: EnvDef) -> tuple[Space, Space]:
        """What one observation and one action are.

        Raises:
            CompileError: RG0510, for an environment that cannot be made, or whose spaces no batch
                can hold.
        """
        one = make_one(env)
        try:
            return _spaces(env, one)
        finally:
            one.close()

    def reset(self) -> Observations:
        """Begin a new episode in every copy: the first from its seed, later ones from where its
        generator stands.
        """
        cut: list[list[int] | None] = [None] * len(self._groups)
        if not self._groups:
            seeds = self._seeds("run", self.env.count)
            cut = [seeds[at : at + self._size] for at in range(0, len(seeds), self._size)]
            self._groups = [self._copies(self._size, learn=True) for _ in cut]
        begun = [c.reset(mine) for c, mine in zip(self._groups, cut, strict=True)]
        return _observations(self._index, _joined(begun))

    def step(
        self, observations: Observations, actions: Actions
    ) -> tuple[Observations, Transitions]:
        """Take one step in the copies that `actions` names: one group of them, several, or all.

        An episode that ends is followed by a new one at once: the observations returned are its
        first. Emits return and length of the episodes that ended, and how many did.

        Args:
            observations: in which the actions were chosen.
            actions: one for each copy, in the order of their numbers.

        Raises:
            ValueError: before the first reset, for copies that are no whole groups, and for others
                than observed.
        """
        groups = self._named(observations, actions)
        chosen, size = actions.values.cpu().numpy(), self._size
        steps = [c.step(chosen[i * size : (i + 1) * size]) for i, c in enumerate(groups)]
        for step in steps:
            _tell(step)
        now = _joined([step.observations for step in steps])
        made = _transitions(observations, actions, now, steps)
        return _observations(actions.index, now), made

    def play(self, act: Callable[[Observations], Actions], episodes: int) -> Tensor:
        """Returns, float64 `(episodes,)`, of an evaluation in copies of its own.

        Each copy plays as many episodes as the others, or one less, so that short episodes do not
        count more often than long ones. They are the same in every evaluation, as far as the
        policy lets them; running moments of observations are used and do not move on.
        """
        import torch

        number = min(self.env.count, episodes)
        copies = self._watched(number)
        wanted = [(episodes + number - 1 - place) // number for place in range(number)]
        found: list[list[float]] = [[] for _ in wanted]
        index = self._index[:number]
        seen = copies.reset(self._seeds("play", number))
        while any(len(mine) < most for mine, most in zip(found, wanted, strict=True)):
            step = copies.step(act(_observations(index, seen)).values.cpu().numpy())
            for place, value in zip(step.ended, step.returns, strict=True):
                if len(found[place]) < wanted[place]:
                    found[place].append(value)
            seen = step.observations
        return torch.tensor([value for mine in found for value in mine], dtype=torch.float64)

    def close(self) -> None:
        """End what the copies hold."""
        for copies in (*self._groups, *([self._examined] if self._examined else [])):
            copies.close()

    def _copies(self, count: int, *, learn: bool) -> Copies:
        return Copies(make_several(self.env, count, self._spec), self._moments, learn=learn)

    def _watched(self, count: int) -> Copies:
        """The copies of an evaluation, made once for a number of them."""
        if self._examined is None or self._examined.vector.num_envs != count:
            if self._examined is not None:
                self._examined.close()
            self._examined = self._copies(count, learn=False)
        return self._examined

    def _seeds(self, purpose: str, count: int) -> list[int]:
        return [_seed(self._seed, self.env.name, purpose, number) for number in range(count)]

    def _named(self, observations: Observations, actions: Actions) -> Sequence[Copies]:
        """The groups of the copies in which to act."""
        names = actions.index.cpu().numpy().tobytes()
        known = self._known.get(names)
        if known is not None and observations.index.cpu().numpy().tobytes() == names:
            return known
        if not self._groups:
            raise ValueError(f"no episode has begun in `{self.env.name}`: reset comes first")
        packed.same_samples(observations, actions)
        copies, size = actions.index.tolist(), self._size
        first = copies[0] if copies else 0
        whole = not first % size and not len(copies) % size and len(copies) > 0
        if not whole or copies != list(range(self.env.count))[first : first + len(copies)]:
            raise ValueError(f"copies {copies} are not whole groups of {size}, in order")
        self._known[names] = self._groups[first // size : (first + len(copies)) // size]
        return self._known[names]


def _seed(*names: object) -> int:
    """A number of 31 bits, which every environment takes, the same on every machine."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1


def _spaces(env: EnvDef, one: gym.Env[Any, Any]) -> tuple[Space, Space]:
    return observation_space(env, one.observation_space), action_space(env, one.action_space)


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _observations(index: Tensor, values: Array) -> Observations:
    import torch

    return Observations(index=index, group=index, values=torch.from_numpy(values))


def _transitions(
    before: Observations, actions: Actions, now: Array, steps: Sequence[Step]
) -> Transitions:
    """One step of each copy. Made in numpy: of torch only what makes a tensor of an array."""
    import torch

    finals: list[list[Tensor]] = [[] for step in steps for _ in step.rewards]
    first = 0
    for step in steps:
        for place, last in step.finals.items():
            finals[first + place].append(torch.from_numpy(last))
        first += len(step.rewards)
    count = len(now)
    sides = before.values.cpu().numpy().reshape(count, -1), now.reshape(count, -1)
    pairs = np.concatenate(sides, axis=1).reshape(2 * count, *now.shape[1:])
    return Transitions(
        index=actions.index,
        group=actions.group,
        lengths=torch.from_numpy(np.ones(count, np.int64)),
        observations=torch.from_numpy(pairs),
        actions=actions.values,
        logprobs=actions.logprobs,
        versions=actions.versions,
        reward_values=torch.from_numpy(_joined([step.rewards for step in steps])),
        terminated=torch.from_numpy(_joined([step.terminated for step in steps])),
        truncated=torch.from_numpy(_joined([step.truncated for step in steps])),
        finals=finals,
    )


def _tell(step: Step) -> None:
    """Emit what is known of the episodes that ended."""
    count = len(step.returns)
    if count:
        metric("episode/return", sum(step.returns) / count, weight=count)
        metric("episode/length", sum(step.lengths) / count, weight=count)
        metric("episode/count", float(count), reduce="sum")
