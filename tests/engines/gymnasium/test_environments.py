from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from rlinf_graph.engines.gymnasium.environments import GymnasiumEnvironments
from rlinf_graph.ir import packed
from rlinf_graph.ir.batches import Observations, Transitions
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import EnvDef
from rlinf_graph.nodes.environment import environments_class
from rlinf_graph.nodes.execution import Execution, executing
from tests.engines.gymnasium.conftest import CountTogether, actions

Make = Callable[..., GymnasiumEnvironments]
KINDS = ["tests/Count-v0", "tests/Together-v0", "tests/Later-v0", "tests/Single-v0"]


def choices(steps: int, copies: int, of: int) -> Tensor:
    return torch.randint(of, (steps, copies), generator=torch.Generator().manual_seed(1))


def run(environments: GymnasiumEnvironments, chosen: Tensor) -> list[Transitions]:
    seen, made = environments.reset(), []
    for values in chosen:
        seen, step = environments.step(seen, actions(seen, values))
        made.append(step)
    return made


def run_groups(environments: GymnasiumEnvironments, chosen: Tensor, groups: int) -> Any:
    """As `run`, with each group stepped by itself."""
    parts = np.split(np.arange(chosen.shape[1]), groups)
    whole = environments.reset()
    seen = [packed.select(whole, rows) for rows in parts]
    made: list[list[Transitions]] = []
    for values in chosen:
        steps = [
            environments.step(o, actions(o, values[rows]))
            for o, rows in zip(seen, parts, strict=True)
        ]
        seen = [after for after, _ in steps]
        made.append([step for _, step in steps])
    return [packed.concat(steps) for steps in made]


def same(one: Transitions, other: Transitions) -> bool:
    names = ("observations", "reward_values", "terminated", "truncated", "lengths", "index")
    equal = all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)
    finals = [[f.tolist() for f in row] for row in one.finals]
    return equal and finals == [[f.tolist() for f in row] for row in other.finals]


def test_it_is_the_class_named_gymnasium() -> None:
    assert environments_class("gymnasium") is GymnasiumEnvironments


@pytest.mark.parametrize("path", KINDS)
def test_a_step_is_that_of_arithmetic(make: Make, path: str) -> None:
    environments = make(path, 2, seed=3)
    seen = environments.reset()
    numbers = seen.values[:, 0].clone()
    assert seen.values.dtype == torch.float32
    assert seen.values[:, 1].tolist() == [0, 0]
    for step in range(1, 5):
        before, (seen, made) = seen, environments.step(seen, actions(seen, [2, 0]))
        assert made.lengths.tolist() == [1, 1]
        assert torch.equal(made.observations[::2], before.values)
        assert torch.equal(made.observations[1::2], seen.values)
        assert seen.values[:, 1].tolist() == [step, step]
        torch.testing.assert_close(made.reward_values.float(), numbers + torch.tensor([2.0, 0.0]))
        assert not made.terminated.any()
        assert not made.truncated.any()
        assert made.finals == [[], []]
    seen, made = environments.step(seen, actions(seen, [0, 1]))
    assert made.terminated.tolist() == [
        False,
        True,
    ]  # an end of the task counts, the limit does not
    assert made.truncated.tolist() == [True, False]
    assert seen.values[:, 1].tolist() == [0, 0]
    assert not torch.isclose(seen.values[:, 0], numbers).any()
    (cut,), none = made.finals
    assert torch.equal(cut, torch.stack([numbers[0], torch.tensor(5.0)]))
    assert none == []


def test_the_own_version_of_many_is_used_where_it_keeps_to_the_rules(make: Make) -> None:
    used: list[type] = []
    for path in (*KINDS, "CartPole-v1"):
        environments = make(path, 3)
        environments.reset()
        used.append(type(environments._groups[0].vector))
    assert used == [SyncVectorEnv, CountTogether, SyncVectorEnv, SyncVectorEnv, SyncVectorEnv]


@pytest.mark.parametrize("path", KINDS[1:])
def test_both_kinds_of_vector_environments_are_one(make: Make, path: str) -> None:
    chosen = choices(40, 4, 3)
    ones, others = run(make(KINDS[0], 4), chosen), run(make(path, 4, groups=2), chosen)
    assert all(same(one, other) for one, other in zip(ones, others, strict=True))
    assert any(step.truncated.any() for step in ones)


@pytest.mark.parametrize("path", ["CartPole-v1", "tests/Together-v0"])
@pytest.mark.parametrize("groups", [2, 4])
def test_copies_do_not_depend_on_how_they_are_grouped(make: Make, path: str, groups: int) -> None:
    chosen = choices(60, 4, 2)
    ones = run(make(path, 4), chosen)
    together = run(make(path, 4, groups=groups), chosen)
    others = run_groups(make(path, 4, groups=groups), chosen, groups)
    assert all(same(one, other) for one, other in zip(ones, together, strict=True))
    assert all(same(one, other) for one, other in zip(ones, others, strict=True))


def test_episodes_depend_on_the_seed_and_the_name(make: Make) -> None:
    first = make("CartPole-v1", 3).reset().values
    assert torch.equal(make("CartPole-v1", 3).reset().values, first)
    assert not torch.isclose(make("CartPole-v1", 3, seed=1).reset().values, first).any()
    other = GymnasiumEnvironments(EnvDef("other", "CartPole-v1", 3), seed=0, groups=1)
    assert not torch.isclose(other.reset().values, first).any()
    other.close()
    assert len(first.unique()) == first.numel()


def test_a_later_reset_begins_other_episodes(make: Make) -> None:
    environments = make("CartPole-v1", 2)
    seen = environments.reset()
    after, _ = environments.step(seen, actions(seen, [0, 1]))
    again = environments.reset()
    assert not torch.isclose(again.values, seen.values).any()
    assert not torch.isclose(again.values, after.values).any()


def test_episodes_that_end_are_told(make: Make) -> None:
    environments = make("tests/Count-v0", 3)
    with executing(Execution()) as here:
        seen = environments.reset()
        number = seen.values[:, 0].double()
        for chosen in ([0, 0, 2], [0, 1, 2], [0, 0, 1]):
            seen, _ = environments.step(seen, actions(seen, chosen))
    returns = [2 * number[1] + 1, 3 * number[2] + 5]
    assert here.metrics.values() == {
        "episode/count": 2,
        "episode/length": 2.5,
        "episode/return": pytest.approx(float(sum(returns)) / 2, rel=1e-6),
    }


def test_an_evaluation_leaves_the_copies_as_they_are(make: Make) -> None:
    chosen = choices(30, 2, 2)
    plain = run(make("CartPole-v1", 2, normalize=True), chosen)
    environments = make("CartPole-v1", 2, normalize=True)
    seen, made = environments.reset(), []
    for values in chosen:
        environments.play(lambda o: actions(o, [0] * len(o)), 3)
        seen, step = environments.step(seen, actions(seen, values))
        made.append(step)
    assert all(same(one, other) for one, other in zip(plain, made, strict=True))


def test_copies_of_an_evaluation_play_equally_often(make: Make) -> None:
    """Copy 0 ends at once, the others after five steps: it plays no more than its share."""
    environments = make("tests/Count-v0", 3)
    asked: list[int] = []

    def act(observations: Observations) -> Any:
        asked.append(len(observations))
        return actions(observations, [1, 0, 0])

    returns = environments.play(act, 7)
    assert returns.shape == (7,)
    assert returns.dtype == torch.float64
    assert len(asked) == 10
    assert set(asked) == {3}
    assert (returns[:3] >= 1).all()
    assert torch.equal(environments.play(act, 7), returns)
    assert environments.play(lambda o: actions(o, [1, 0]), 2).shape == (2,)
    assert environments.play(act, 7)[0] == returns[0]


def test_actions_are_clipped_to_their_bounds(make: Make) -> None:
    environments, direct = make("Pendulum-v1", 2), gym.make("Pendulum-v1")
    seen = environments.reset()
    wild = torch.tensor([[5.0], [-0.5]], dtype=torch.float64)
    _, made = environments.step(seen, actions(seen, wild))
    assert torch.equal(made.actions, wild)
    direct.reset()
    direct.unwrapped.state = np.array(  # pyright: ignore[reportAttributeAccessIssue]  of Pendulum
        [np.arctan2(*seen.values[0, [1, 0]].numpy().astype(float)), seen.values[0, 2].item()]
    )
    expected, reward, *_ = direct.step(np.array([2.0], dtype=np.float32))
    torch.testing.assert_close(made.observations[1], torch.as_tensor(expected), atol=1e-5, rtol=0)
    assert float(made.reward_values[0]) == pytest.approx(float(reward), abs=1e-5)
    direct.close()


class Shifted(gym.Env[Any, Any]):
    """Shows one of three numbers from 5, takes one of two from -1 and shows 5 plus what it took."""

    observation_space = gym.spaces.Discrete(4, start=5)
    action_space = gym.spaces.Discrete(2, start=-1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.int64(8), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return np.int64(6 + action), float(action), False, action == 0, {}


def test_numbers_count_from_zero(make: Make) -> None:
    environments = make(Shifted, 2)
    seen = environments.reset()
    assert seen.values.tolist() == [3, 3]
    assert seen.values.dtype == torch.int64
    seen, made = environments.step(seen, actions(seen, [0, 1]))
    assert made.reward_values.tolist() == [-1, 0]
    assert made.observations.tolist() == [3, 0, 3, 3]
    assert made.finals == [[], [torch.tensor(1)]]


class Picture(Shifted):
    observation_space = gym.spaces.Box(0, 255, (2, 2, 3), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.full((2, 2, 3), 255, dtype=np.uint8), {}

    def step(self, action: Any) -> Any:
        return np.full((2, 2, 3), 7, dtype=np.uint8), 0.0, False, False, {}


def test_pictures_stay_bytes(make: Make) -> None:
    environments = make(Picture, 2)
    seen = environments.reset()
    assert seen.values.dtype == torch.uint8
    _, made = environments.step(seen, actions(seen, [0, 1]))
    assert made.observations.shape == (4, 2, 2, 3)
    assert made.observations[:, 0, 0, 0].tolist() == [255, 7, 255, 7]


@pytest.mark.parametrize("rows", [[0], [1, 2], [1, 0], [0, 1, 2], []])
def test_actions_of_other_copies_than_groups_are_refused(make: Make, rows: list[int]) -> None:
    environments = make("CartPole-v1", 4, groups=2)
    seen = packed.select(environments.reset(), rows)
    with pytest.raises(ValueError, match="are not whole groups of 2, in order"):
        environments.step(seen, actions(seen, [0] * len(rows)))


def test_actions_belong_to_the_observations(make: Make) -> None:
    environments = make("CartPole-v1", 4, groups=2)
    seen = environments.reset()
    other = packed.select(seen, [2, 3])
    with pytest.raises(ValueError, match="do not hold the same samples"):
        environments.step(packed.select(seen, [0, 1]), actions(other, [0, 0]))


def test_reset_comes_first(make: Make) -> None:
    seen = make("CartPole-v1", 2).reset()
    with pytest.raises(ValueError, match="no episode has begun in `sim`"):
        make("CartPole-v1", 2).step(seen, actions(seen, [0, 0]))


def test_groups_divide_the_copies(make: Make) -> None:
    with pytest.raises(CompileError, match=r"RG0403.*3 groups do not divide the 4 copies of `sim`"):
        make("CartPole-v1", 4, groups=3)
