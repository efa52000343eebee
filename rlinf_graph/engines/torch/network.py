"""Small networks: from an environment's observation to a distribution over actions, or a value."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from rlinf_graph.dsl.model import SMALL
from rlinf_graph.engines.torch.noise import stream
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef, Space

KIND = "mlp"
"""`model_type` in the `config.json` of a folder that holds one."""

GAINS = {"action": 0.01, "value": 1.0}
"""Of the last layer's first weights; those before it have sqrt(2), as in Stable-Baselines3."""


@dataclass(frozen=True)
class Sizes:
    """What a network is made from.

    Attributes:
        head: `action` or `value`.
        hidden: sizes of the hidden layers.
        observation, action: spaces of the environment; a critic needs no actions.
    """

    head: str
    hidden: tuple[int, ...]
    observation: Space
    action: Space | None

    @property
    def layers(self) -> tuple[int, ...]:
        """Sizes from the observation to what comes out."""
        made = 1
        if self.head == "action" and self.action is not None:
            made = self.action.choices or self.action.size
        return (self.observation.choices or self.observation.size, *self.hidden, made)


class Network(nn.Module):
    """Linear layers with tanh between them.

    Bytes, as of images, are scaled to 0..1; one of several numbers is spread to as many entries.
    For actions that are arrays, `log_std` is a parameter that no observation moves.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        made: list[Any] = [nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(sizes.layers)]
        self.layers = nn.ModuleList(made)
        # The same parameters: calls of modules would take as long as the work.
        self._pairs: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in made]
        self.log_std: nn.Parameter | None = None
        if sizes.head == "action" and sizes.action is not None and not sizes.action.choices:
            self.log_std = nn.Parameter(torch.zeros(sizes.action.size))

    def forward(self, observations: Tensor) -> Tensor:
        """`(n, *shape)` to `(n, choices)` logits, `(n, size)` means, or `(n, 1)` values."""
        (weight, bias), *others = self._pairs
        seen = observations
        if seen.device != weight.device:
            seen = seen.to(weight.device)
        if self.sizes.observation.choices:
            seen = functional.one_hot(seen, self.sizes.observation.choices).to(weight.dtype)
        else:
            seen = seen.flatten(1).to(weight.dtype)
            if observations.dtype == torch.uint8:
                seen = seen / 255
        seen = functional.linear(seen, weight, bias)
        for weight, bias in others:
            seen = functional.linear(torch.tanh(seen), weight, bias)
        return seen


def is_small(path: str) -> bool:
    """Whether a model's path names a network, or a folder that holds one."""
    return path.startswith(SMALL) or _config(path).get("model_type") == KIND


def load_network(model: ModelDef, seed: int, dtype: torch.dtype) -> Network:
    """The network that a path such as `mlp:64x64` or a folder names, on the CPU.

    Weights of a folder are read, unless the model asks for random ones.

    Raises:
        CompileError: RG0503, for what cannot be made or read.
    """
    named = model.path.startswith(SMALL)
    sizes = _named_sizes(model) if named else _saved_sizes(model)
    if named or model.weights == "random":
        return _new(sizes, seed, model.name).to(dtype)
    network = Network(sizes).to(dtype)
    try:
        network.load_state_dict(load_file(Path(model.path, "model.safetensors")))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _unusable(model, f"the weights in {model.path} cannot be read", error) from error
    return network


def save_network(network: Network, path: Path) -> None:
    """Write `config.json` and `model.safetensors`, which `load_network` reads."""
    config = {"model_type": KIND, **asdict(network.sizes)}
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    kept = {n: t.detach().cpu().contiguous() for n, t in network.state_dict().items()}
    save_file(kept, path / "model.safetensors")


def _new(sizes: Sizes, seed: int, name: str) -> Network:
    """Orthogonal weights and no biases, drawn in float32; they depend on seed and name only."""
    draws = torch.Generator().manual_seed(stream(seed, name))
    network = Network(sizes)
    gains = [math.sqrt(2)] * len(sizes.hidden) + [GAINS[sizes.head]]
    for layer, gain in zip(network.layers, gains, strict=True):
        nn.init.orthogonal_(layer.weight, gain, generator=draws)  # pyright: ignore[reportArgumentType]  of a Linear
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]  of a Linear
    return network


def _named_sizes(model: ModelDef) -> Sizes:
    """Sizes from a path such as `mlp:64x64` and the spaces of the environment."""
    said = model.path.removeprefix(SMALL)
    words = said.split("x") if said else []
    if not all(word.isdecimal() and int(word) for word in words):
        message = f"`{model.name}`: `{model.path}` names no network"
        raise fail("RG0503", message, model.span, help=("write hidden layers: mlp:64x64",))
    if model.observation is None or (model.head == "action" and model.action is None):
        raise fail(
            "RG0503",
            f"`{model.name}`: {model.path} is made for an environment, and none is known",
            model.span,
            help=(f'rl.Model("{model.path}", head="{model.head}", env=env)',),
        )
    return _sizes(model, model.head, tuple(map(int, words)), model.observation, model.action)


def _saved_sizes(model: ModelDef) -> Sizes:
    """Sizes from a folder's `config.json`, where they fit the model."""
    config = _config(model.path)
    try:
        sees, does = _space(config["observation"]), config["action"] and _space(config["action"])
        sizes = _sizes(model, config["head"], tuple(config["hidden"]), sees, does)
    except (KeyError, TypeError) as error:
        raise _unusable(model, f"{model.path}/config.json cannot be read", error) from error
    acts = model.head == "action"
    given = (model.head, model.observation or sees, acts and (model.action or does))
    if given != (sizes.head, sees, acts and does):
        raise fail(
            "RG0503",
            f"`{model.name}`: the network in {model.path} is made for something else",
            model.span,
            notes=(
                f"it has head `{sizes.head}`, observations {_shown(sees)}, actions {_shown(does)}",
                f"this needs head `{model.head}`, observations {_shown(model.observation)}, "
                f"actions {_shown(model.action)}",
            ),
            help=("name the folder of a network for the same environment",),
        )
    return sizes


def _sizes(
    model: ModelDef, head: str, hidden: tuple[int, ...], sees: Space, does: Space | None
) -> Sizes:
    if head not in GAINS:
        raise fail(
            "RG0503",
            f"`{model.name}` is a small network, which has no head `{head}`",
            model.span,
            help=('head="action" for a policy, head="value" for a critic',),
        )
    return Sizes(head, hidden, sees, does if head == "action" else None)


def _space(data: dict[str, Any]) -> Space:
    return Space(tuple(data["shape"]), data["choices"], data["dtype"])


def _shown(space: Space | None) -> str:
    if space is None:
        return "of any kind"
    return f"of {space.choices} choices" if space.choices else f"of shape {space.shape}"


def _config(path: str) -> dict[str, Any]:
    """What a folder's `config.json` says; nothing where there is none to read."""
    try:
        found = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unusable(model: ModelDef, what: str, error: Exception) -> Exception:
    said = next(iter(str(error).strip().splitlines()), "")
    return fail(
        "RG0503",
        f"`{model.name}`: {what}",
        model.span,
        notes=(f"{type(error).__name__}: {said}",),
        help=("name the folder that a run wrote",),
    )
