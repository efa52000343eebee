"""Weights by name: read, overwritten in place, and written to folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlinf_graph.engines.torch.heads import Scalar
from rlinf_graph.engines.torch.network import Network, save_network
from rlinf_graph.engines.torch.quiet import quiet
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.ir.diagnostic import fail, suggest

HEAD_FILE = "head.safetensors"
"""Where a folder keeps the linear layer of a `value` or `score` head, as `weight`."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers by name, not copies; tied ones under their first name only."""
    aliases = dict(model.named_parameters(remove_duplicate=False))
    kept = dict(model.named_parameters())
    everything = model.state_dict()
    return {n: t.detach() for n, t in everything.items() if n in kept or n not in aliases}


@torch.no_grad()
def overwrite(model: nn.Module, name: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy weights into the model; those not given stay.

    Args:
        model: to write to.
        name: the model's name, for messages.
        weights: of any type and device.

    Raises:
        CompileError: RG0604, for a name that the model does not have, and for another shape.
    """
    held = model.state_dict()
    for key, value in weights:
        if key not in held:
            raise fail("RG0604", f"`{name}` has no weight `{key}`", help=(suggest(key, held),))
        if held[key].shape != value.shape:
            raise fail(
                "RG0604",
                f"weight `{key}` of `{name}` has shape {_shape(held[key])}, not {_shape(value)}",
                help=("give weights of a model of the same configuration",),
            )
        held[key].copy_(value)


def require_all(
    held: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str, name: str
) -> None:
    """Check that a saved state has all that the model has.

    Raises:
        CompileError: RG0604, naming what is missing.
    """
    missing = sorted(set(held) - set(given))
    if missing:
        raise fail(
            "RG0604",
            f"the saved {what} of `{name}` lack {len(missing)} of {len(held)}, "
            f"such as `{missing[0]}`",
            help=("resume with the model that the state was saved from",),
        )


def save(model: nn.Module, text: Text | None, path: Path) -> None:
    """Write a folder that transformers' `from_pretrained` loads, tokenizer included.

    A model with a `value` or `score` head is written as its backbone and `HEAD_FILE`, a small
    network as `save_network` does.
    """
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Network):
        save_network(model, path)
        return
    backbone = model.backbone if isinstance(model, Scalar) else model
    if not isinstance(backbone, PreTrainedModel):
        raise TypeError(f"{type(backbone).__name__} is no model of transformers")
    with quiet():
        backbone.save_pretrained(path)
    if isinstance(model, Scalar):
        save_file({"weight": model.head.weight.detach().cpu().contiguous()}, path / HEAD_FILE)
    if text is not None:
        text.tokenizer.save_pretrained(path)


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "()"
