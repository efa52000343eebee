"""What observations and actions are: gymnasium's spaces in the words of the graph."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import EnvDef, Space

FLATTEN = (
    "give a function that makes one that is flat: def flat(): "
    "return gymnasium.wrappers.FlattenObservation(gymnasium.make(…)) and rl.Env(flat, …)"
)
NUMBERED = (
    "give a function that makes one whose actions are an array, or numbers from 0: def numbered(): "
    "return gymnasium.wrappers.TransformAction(gymnasium.make(…), …) and rl.Env(numbered, …)"
)


def observation_space(env: EnvDef, space: gym.Space[Any]) -> Space:
    """What one observation is: float32, uint8 for images that are not normalized, or a choice.

    Raises:
        CompileError: RG0510, for a space that is neither a Box nor Discrete, and for choices that
            are to be normalized.
    """
    if isinstance(space, Discrete):
        if env.normalize:
            message = (
                f"`{env.name}` shows one of {space.n} numbers, which have no mean to normalize"
            )
            raise fail("RG0510", message, env.span, help=("leave out normalize=True",))
        return Space(choices=int(space.n), dtype="int64")
    if not isinstance(space, Box):
        raise _refused(env, "observations", space, FLATTEN)
    image = space.dtype == np.uint8 and not env.normalize
    return Space(tuple(space.shape), dtype="uint8" if image else "float32")


def action_space(env: EnvDef, space: gym.Space[Any]) -> Space:
    """What one action is: an array of float32, or one of some numbers from 0.

    Raises:
        CompileError: RG0510, for a space that is neither Discrete nor a Box of floats.
    """
    if isinstance(space, Discrete):
        return Space(choices=int(space.n), dtype="int64")
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise _refused(env, "actions", space, NUMBERED)
    return Space(tuple(space.shape))


def _refused(env: EnvDef, what: str, space: gym.Space[Any], help_text: str) -> Exception:
    return fail(
        "RG0510",
        f"{what} of `{env.name}` are {type(space).__name__}, which no batch can hold",
        env.span,
        label="a batch holds arrays of one shape, or numbers from 0",
        notes=(f"the space is {space}",),
        help=(help_text,),
    )
