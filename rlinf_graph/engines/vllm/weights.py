"""New weights for a model that vLLM holds, in place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from rlinf_graph.engines.vllm.api import finalize_layerwise_reload, set_current_vllm_config
from rlinf_graph.ir.diagnostic import fail, suggest

LAYER = re.compile(r"^(?P<layer>(?:\w+\.)*?\w+\.\d+)\.")
"""The decoder layer that a weight belongs to, by its name."""


class Weights:
    """The weights of a vLLM engine by the names of transformers' checkpoints.

    Args:
        engine: vLLM's `LLMEngine`.
        model: transformers' model of the same configuration, on `meta`.
        name: the model's, for messages.
    """

    def __init__(self, engine: Any, model: Any, name: str) -> None:
        self._engine, self._name = engine, name
        self._device = torch.device(engine.vllm_config.device_config.device)
        self._shapes = checkpoint_shapes(model)
        self._tied = tied_names(model)
        self._layers: dict[str, set[str]] = {}
        for weight in self._shapes:
            self._layers.setdefault(_layer(weight), set()).add(weight)
        self._came: set[str] = set()
        self._torn = False

    def require_whole(self) -> None:
        """Make sure that all weights are those of one model.

        Raises:
            RuntimeError: the last update broke off.
        """
        if self._torn:
            message = f"an update of the weights of `{self._name}` broke off: give all of them"
            raise RuntimeError(message)

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite weights; those of layers that do not come stay.

        vLLM keeps what it reads together in one matrix, and copies it to where the old weights are
        (so that captured graphs stay valid) when all of it has come. Until then it keeps copies,
        at most of a layer where weights come layer by layer.

        Raises:
            CompileError: RG0604, for a name that the model does not have, another shape, and a
                layer that comes in part. The engine samples again after a complete update.
        """
        self._came.clear()
        stream, self._torn = self._checked(weights, everything=self._torn), True
        try:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})
        except BaseException:
            self._engine.collective_rpc(_close_reload)
            raise
        if self._device.type == "cpu":
            self._engine.apply_model(partial(_pack_again, frozenset(self._came)))
        self._torn = False

    def _checked(
        self, weights: Iterable[tuple[str, Tensor]], *, everything: bool
    ) -> Iterator[tuple[str, Tensor]]:
        begun = self._layers if everything else {}
        missing = {layer: set(names) for layer, names in begun.items()}
        for name, value in weights:
            if name in self._tied:
                continue
            if name not in self._shapes:
                known = suggest(name, self._shapes)
                raise fail("RG0604", f"`{self._name}` has no weight `{name}`", help=(known,))
            if tuple(value.shape) != self._shapes[name]:
                given, held = (_times(shape) for shape in (value.shape, self._shapes[name]))
                message = f"weight `{name}` of `{self._name}` has shape {held}, not {given}"
                same = "give weights of a model of the same configuration"
                raise fail("RG0604", message, help=(same,))
            self._came.add(_layer(name))
            missing.setdefault(_layer(name), set(self._layers[_layer(name)])).discard(name)
            yield name, value.detach().to(self._device, copy=True)
        absent = sorted(name for names in missing.values() for name in names)
        if absent:
            raise fail(
                "RG0604",
                f"an update of `{self._name}` lacks {len(absent)} weights of layers that it has "
                f"others of, such as `{absent[0]}`",
                notes=("vLLM keeps weights of a layer together in one matrix",),
                help=("give all weights of a layer, or none",),
            )


def checkpoint_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Weights of a transformers model by the names in its checkpoints; tied ones once."""
    found: Mapping[str, Tensor] = revert_weight_conversion(model, dict(model.named_parameters()))
    return {name: tuple(value.shape) for name, value in found.items()}


def tied_names(model: Any) -> set[str]:
    """Second names of weights that have two."""
    kept = {name for name, _ in model.named_parameters()}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - kept


def _layer(name: str) -> str:
    """The decoder layer of a weight; weights outside of layers are each their own."""
    found = LAYER.match(name)
    return found["layer"] if found else name


def _times(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "()"


def _close_reload(worker: Any) -> None:
    """Leave an update that broke off: what had come is written, the rest is undefined."""
    with set_current_vllm_config(worker.vllm_config):
        finalize_layerwise_reload(worker.model_runner.get_model(), worker.model_config)


def _pack_again(layers: frozenset[str], model: Any) -> None:
    """Do what vLLM 0.32 leaves out on CPUs, whose kernels read packed copies of weights.

    Tied output embeddings have no weight of their own to be loaded, so their packed copy stays as
    it was. Experts are packed by the first `process_weights_after_loading` only: those that come
    again are not. `layers` are the decoder layers that came.
    """
    for name, module in model.named_modules():
        method: Any = getattr(module, "quant_method", None)
        if hasattr(module, "cpu_linear") and module.weight.numel():
            method.process_weights_after_loading(module)
        kernel = getattr(method, "moe_kernel", None)
        if kernel is not None and _layer(f"{name}.") in layers:
            kernel.fused_experts.process_weights_after_loading(module)
