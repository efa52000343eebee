"""Where a model lies and in which type: what `auto` means, and what is refused."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlinf_graph.ir import packed
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.engine import TrainBatch

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def device_of(model: ModelDef, name: str) -> torch.device:
    """The device; `auto` is a GPU if there is one.

    Raises:
        CompileError: RG0503, for a GPU that torch does not find.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise fail(
            "RG0503",
            f"`{model.name}` is to run on {name}; torch finds {torch.cuda.device_count()} GPUs",
            help=("run on a machine of the cluster file, with a CUDA build of torch",),
        )
    return device


def dtype_of(name: str, device: torch.device, *, small: bool) -> torch.dtype:
    """The type; `auto` is bfloat16 on GPUs and float32 on CPUs and for small networks."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and not small else torch.float32
    return DTYPES[name]


def moved(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """The batch with its tensors on the device; batches on edges are in the host's memory."""
    if device.type == "cpu" and batch.samples.index.device.type == "cpu":
        return batch
    tensors = {
        field.name: value.to(device)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, samples=packed.to(batch.samples, device), **tensors)
