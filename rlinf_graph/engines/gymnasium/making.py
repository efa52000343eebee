"""Environments made, one or several that step together, with errors that say what to change."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from typing import Any, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.graph import EnvDef

SAME_STEP = AutoresetMode.SAME_STEP


def make_one(env: EnvDef) -> gym.Env[Any, Any]:
    """One environment, by its id or by the user's function, given the options.

    Raises:
        CompileError: RG0510, for an environment that cannot be made.
    """
    options = dict(env.options)
    try:
        if isinstance(env.path, str):
            _warn_in_python(env.path)
            return gym.make(env.path, **{"disable_env_checker": True, **options})
        made = env.path(**options)
    except CompileError:
        raise
    except Exception as error:
        raise _unmade(env, error) from error
    if not isinstance(made, gym.Env):
        raise fail(
            "RG0510",
            f"the function of `{env.name}` made a {type(made).__name__}, not a gymnasium.Env",
            env.span,
            help=(
                "return what gymnasium.make returns, or an object of a subclass of gymnasium.Env",
            ),
        )
    return cast("gym.Env[Any, Any]", made)


def make_several(env: EnvDef, count: int, spec: EnvSpec | None) -> VectorEnv[Any, Any, Any]:
    """Environments that step together and begin anew in the step that ends an episode.

    The environment's own vectorized version where it has one that does so and takes a seed for each
    copy; else gymnasium's, which steps one after another. gymnasium 1.4's CartPole has one that
    begins anew a step later and draws from one generator for all copies, so it is not used.

    Args:
        env: what they are copies of.
        count: how many.
        spec: what one of them was registered as; None for a function's.

    Raises:
        CompileError: RG0510, for an environment that cannot be made.
    """
    own = None if spec is None else _own_version(env, count, spec)
    if own is not None:
        return own
    each = [lambda: _Wordless(make_one(env))] * count
    try:  # what it returns is copied when tensors are made of it
        return SyncVectorEnv(each, copy=False, autoreset_mode=SAME_STEP)
    except CompileError:
        raise
    except Exception as error:
        raise _unmade(env, error) from error


class _Wordless(gym.Wrapper[Any, Any, Any, Any]):
    """Says nothing beside what a step returns: to collect it from all copies takes as long as they.

    MuJoCo's report four numbers a step, which nobody reads here.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step without infos."""
        seen, reward, terminated, truncated, _infos = self.env.step(action)
        return seen, reward, terminated, truncated, {}


def _own_version(env: EnvDef, count: int, spec: EnvSpec) -> VectorEnv[Any, Any, Any] | None:
    """The version that the environment was registered with, if it keeps to the above."""
    if spec.vector_entry_point is None:
        return None
    entry: Any = spec.vector_entry_point
    entry = entry if callable(entry) else load_env_creator(entry)
    options = dict(env.options)
    if "autoreset_mode" in inspect.signature(entry).parameters:
        options["autoreset_mode"] = SAME_STEP
    elif getattr(entry, "metadata", {}).get("autoreset_mode", SAME_STEP) is not SAME_STEP:
        return None
    try:
        own = gym.make_vec(spec.id, count, "vector_entry_point", **options)
    except Exception as error:
        raise _unmade(env, error) from error
    if own.metadata.get("autoreset_mode") is SAME_STEP and _takes_seeds(own):
        return own
    own.close()
    return None


def _takes_seeds(own: VectorEnv[Any, Any, Any]) -> bool:
    try:
        own.reset(seed=cast("Any", list(range(own.num_envs))))
    except Exception:  # what a version raises for a seed it does not take is its own affair
        return False
    return True


def _warn_in_python(name: str) -> None:
    """Let MuJoCo warn by Python's means: its own are a line for each copy and a file beside it."""
    spec = gym.registry.get(name)
    if spec is None or not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        return
    mujoco: Any = importlib.import_module("mujoco")
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(functools.partial(warnings.warn, stacklevel=2))


def _unmade(env: EnvDef, error: Exception) -> CompileError:
    shown = env.path if isinstance(env.path, str) else getattr(env.path, "name", "its function")
    said = " ".join(str(error).split())
    return fail(
        "RG0510",
        f"`{env.name}` cannot be made: {shown}",
        env.span,
        notes=(f"{type(error).__name__}: {said}",),
        help=(
            "name an id that gymnasium.make takes, such as CartPole-v1, or module:Id-v0 to import "
            "what registers it, or give a function that makes one",
        ),
    )
