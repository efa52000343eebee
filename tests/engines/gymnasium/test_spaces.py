from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from rlinf_graph.engines.gymnasium.environments import GymnasiumEnvironments
from rlinf_graph.engines.gymnasium.spaces import action_space, observation_space
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.graph import EnvDef, Space
from rlinf_graph.ir.value import FunctionRef

spaces = GymnasiumEnvironments.spaces
REGISTERING = "tests.engines.gymnasium.registering"


def flat() -> gym.Env[Any, Any]:
    return gym.wrappers.FlattenObservation(gym.make("Blackjack-v1"))


def refused(env: EnvDef) -> str:
    with pytest.raises(CompileError) as caught:
        spaces(env)
    (found,) = caught.value.diagnostics
    assert found.code == "RG0510"
    assert found.help
    return found.render()


@pytest.mark.parametrize(
    ("path", "sees", "does"),
    [
        ("CartPole-v1", Space((4,)), Space(choices=2, dtype="int64")),
        ("HalfCheetah-v5", Space((17,)), Space((6,))),
        ("FrozenLake-v1", Space(choices=16, dtype="int64"), Space(choices=4, dtype="int64")),
        (flat, Space((45,)), Space(choices=2, dtype="int64")),
        (FunctionRef.of(flat), Space((45,)), Space(choices=2, dtype="int64")),
        (f"{REGISTERING}:Twice-v0", Space((4,)), Space(choices=2, dtype="int64")),
    ],
    ids=str,
)  # fmt: skip
def test_spaces_are_read_from_one_environment(path: Any, sees: Space, does: Space) -> None:
    assert spaces(EnvDef("sim", path, 8)) == (sees, does)


def test_options_are_given_to_the_environment() -> None:
    small = EnvDef("sim", "FrozenLake-v1", 8, options=(("map_name", "8x8"),))
    assert spaces(small)[0].choices == 64


def test_pictures_are_bytes_unless_normalized() -> None:
    picture = Box(0, 255, (8, 8, 3), dtype=np.uint8)
    assert observation_space(EnvDef("sim", "x", 1), picture) == Space((8, 8, 3), dtype="uint8")
    normalized = EnvDef("sim", "x", 1, normalize=True)
    assert observation_space(normalized, picture) == Space((8, 8, 3))


@pytest.mark.parametrize(
    "space",
    [Dict({"a": Discrete(2)}), Tuple([Discrete(2)]), MultiDiscrete([2, 3]), MultiBinary(3)],
    ids=str,
)
def test_spaces_that_no_batch_can_hold_are_refused(space: gym.Space[Any]) -> None:
    env = EnvDef("sim", "x", 1)
    kind = type(space).__name__
    with pytest.raises(CompileError, match=rf"RG0510.*observations of `sim` are {kind}") as seen:
        observation_space(env, space)
    assert "gymnasium.wrappers.FlattenObservation" in str(seen.value)
    with pytest.raises(CompileError, match=rf"RG0510.*actions of `sim` are {kind}") as done:
        action_space(env, space)
    assert "gymnasium.wrappers.TransformAction" in str(done.value)


def test_a_box_of_integers_is_no_action() -> None:
    with pytest.raises(CompileError, match="RG0510"):
        action_space(EnvDef("sim", "x", 1), Box(0, 5, (2,), dtype=np.int64))


def test_an_environment_that_cannot_be_made_is_explained() -> None:
    assert "Did you mean: `CartPole`?" in refused(EnvDef("sim", "CartPol-v1", 1))
    assert "ModuleNotFoundError: No module named 'nothing'" in refused(
        EnvDef("sim", "nothing:Here-v0", 1)
    )
    odd = EnvDef("sim", "CartPole-v1", 1, options=(("gravty", 3),))
    assert "unexpected keyword argument 'gravty'" in refused(odd)
    assert "made a int, not a gymnasium.Env" in refused(EnvDef("sim", int, 1))
    assert "observations of `sim` are Tuple" in refused(EnvDef("sim", "Blackjack-v1", 1))


def test_the_compiler_loads_no_torch_to_ask_for_spaces() -> None:
    code = """
import sys
from rlinf_graph.ir.graph import EnvDef
from rlinf_graph.nodes.environment import environments_class

print(environments_class("gymnasium").spaces(EnvDef("sim", "CartPole-v1", 8))[1].choices)
print("torch" in sys.modules)
"""
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert made.stdout.split() == ["2", "False"]


def test_mujoco_leaves_no_file_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    spaces(EnvDef("sim", "HalfCheetah-v5", 1))
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_not_normalized() -> None:
    assert "which have no mean" in refused(EnvDef("sim", "FrozenLake-v1", 1, normalize=True))
