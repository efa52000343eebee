"""Attention as one operator, and what no device can do without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rlinf_graph.nodes.tracing.meter import Meter

NEED_VALUES = {
    torch.Tensor.numpy: "numpy",
    torch.Tensor.__array__: "numpy",
    torch.Tensor.tolist: "tolist",
}


ATTENTION = functional.scaled_dot_product_attention


@contextmanager
def calls_seen(meter: Meter) -> Iterator[None]:
    """Let `meter` see calls before they become operators.

    The kernels of GPUs compute attention without storing its square; on the `meta` device torch
    would take it apart instead. Functions of torch that call it look it up by its name, and a mode
    sees only the outermost call: its name is changed meanwhile.
    """
    functional.scaled_dot_product_attention = partial(_attention, meter)
    try:
        with _Calls(meter):
            yield
    finally:
        functional.scaled_dot_product_attention = ATTENTION


class _Calls(TorchFunctionMode):
    """What the user's code itself calls."""

    def __init__(self, meter: Meter) -> None:
        """What `meter` notes."""
        super().__init__()
        self._meter = meter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call."""
        kwargs = dict(kwargs or {})
        if func in NEED_VALUES:
            self._meter.end(NEED_VALUES[func], "it reads a tensor's values outside torch")
        if func is ATTENTION:
            return _attention(self._meter, *args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    meter: Meter,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    del dropout_p, scale, enable_gqa
    return _Attention.apply(query, key, value, attn_mask, is_causal, meter)


def _flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    """Of the two products, over the full square."""
    heads, length = query.shape[:-2].numel(), query.shape[-2]
    return 2.0 * heads * length * key.shape[-2] * (query.shape[-1] + value.shape[-1])


class _Attention(torch.autograd.Function):
    """Notes a forward and a backward pass; backward makes four products of the same size."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        meter: Meter,
    ) -> Tensor:
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, made)
        ctx.meter, ctx.causal = meter, causal
        inputs = [query, key, value, *([] if mask is None else [mask])]
        meter.attention(inputs, [made], _flops(query, key, value), causal=causal)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]  # one output, so one gradient
        query, key, value, made = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        flops = 2 * _flops(query, key, value)
        inputs = [query, key, value, made, gradient]
        ctx.meter.attention(inputs, gradients, flops, causal=ctx.causal)
        return *gradients, None, None, None
