"""What is known of torch's operators: their class, their operations and the bytes they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from rlinf_graph.ir.operations import OperationKind

_NAMES: dict[OperationKind, str] = {
    "matmul": "mm addmm bmm baddbmm _scaled_mm mv addmv dot vdot _grouped_mm",
    "convolution": "convolution convolution_backward _convolution",
    "attention": "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention _flash_attention_forward _efficient_attention_forward "
    "_scaled_dot_product_flash_attention_backward _flash_attention_backward "
    "_scaled_dot_product_efficient_attention_backward _efficient_attention_backward "
    "_scaled_dot_product_cudnn_attention_backward",
    "element-wise": "native_dropout native_dropout_backward bernoulli normal uniform rand randn "
    "rand_like randn_like randint randint_like exponential arange linspace full full_like zeros "
    "zeros_like ones ones_like new_zeros new_ones new_full fill zero eye tril triu scalar_tensor "
    "binary_cross_entropy binary_cross_entropy_backward smooth_l1_loss mse_loss huber_loss "
    "binary_cross_entropy_with_logits upsample_nearest2d upsample_bilinear2d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_nearest2d_backward "
    "upsample_bilinear2d_backward add addcmul addcdiv mul div sub lerp sqrt random "
    "logit_backward log_sigmoid_forward log_sigmoid_backward masked_fill bitwise_and bitwise_or",
    "reduction": "native_layer_norm native_layer_norm_backward native_group_norm _softmax "
    "_safe_softmax "
    "native_group_norm_backward _softmax_backward_data _log_softmax _log_softmax_backward_data "
    "native_batch_norm native_batch_norm_backward cudnn_batch_norm _fused_rms_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _fused_rms_norm_backward "
    "batch_norm_backward cumsum cumprod logcumsumexp cummax cummin _cummax_helper _cummin_helper "
    "mean sum prod amax amin max min argmax argmin any all var std var_mean std_mean norm "
    "linalg_vector_norm logsumexp avg_pool2d avg_pool2d_backward avg_pool1d "
    "max_pool2d_with_indices "
    "max_pool2d_with_indices_backward _adaptive_avg_pool2d _adaptive_avg_pool2d_backward "
    "nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward "
    "_weight_norm_interface _cdist_forward count_nonzero histc bincount equal",
    "gather/scatter": "embedding embedding_dense_backward gather index_select index scatter "
    "index_put _index_put_impl _unsafe_index _unsafe_index_put index_add index_copy index_fill "
    "scatter_add scatter_reduce take put nonzero masked_select masked_scatter select_backward "
    "slice_backward select_scatter slice_scatter index_select_backward roll flip one_hot "
    "_embedding_bag repeat_interleave",
    "sort": "sort topk kthvalue median nanmedian mode _unique2 unique_dim unique_consecutive "
    "multinomial searchsorted bucketize randperm",
    "copy": "clone _to_copy copy cat stack constant_pad_nd reflection_pad2d replication_pad2d "
    "repeat contiguous unfold_backward im2col col2im lift_fresh_copy",
}  # fmt: skip
KINDS: dict[str, OperationKind] = {
    name: kind for kind, names in _NAMES.items() for name in names.split()
}
NOTHING = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "empty_permuted",
}
"""Operators that reserve memory and launch nothing."""


def base_name(operator: Any) -> str:
    """Such as `addmm`: without namespace, overload and the mark of working in place."""
    name = operator._schema.name.partition("::")[2].removeprefix("_foreach_")
    return name.rstrip("_") or name


def kind_of(operator: Any) -> OperationKind:
    """The class of an operator: by its name, else by the tags that torch gives it."""
    if operator.namespace not in ("aten", "prims"):
        return "other"
    found = KINDS.get(base_name(operator))
    if found is not None:
        return found
    if torch.Tag.pointwise in operator.tags:
        return "element-wise"
    if torch.Tag.reduction in operator.tags:
        return "reduction"
    return "other"


def _times(first: Tensor, second: Tensor) -> float:
    """A product of a matrix or vector with a vector."""
    return 2.0 * max(first.numel(), second.numel())


_VECTORS: dict[str, Callable[[Sequence[Any]], float]] = {
    "mv": lambda given: _times(given[0], given[1]),
    "dot": lambda given: _times(given[0], given[1]),
    "vdot": lambda given: _times(given[0], given[1]),
    "addmv": lambda given: _times(given[1], given[2]),
    "_grouped_mm": lambda given: 2.0 * given[0].numel() * given[1].shape[-1],
}
"""Products that torch's table lacks."""


def flops_of(operator: Any, given: Sequence[Any], named: dict[str, Any], made: Any) -> float | None:
    """Operations of one launch by torch's table of formulas.

    Returns:
        None for a product, an attention or a convolution without a formula.
    """
    formula = flop_registry.get(operator._overloadpacket)
    if formula is not None:
        return float(formula(*given, **named, out_val=made))
    kind = kind_of(operator)
    if kind in ("matmul", "attention", "convolution"):
        count = _VECTORS.get(base_name(operator))
        return count(given) if count else None
    return None if kind == "other" else 0.0


def size(tensor: Tensor) -> float:
    """Bytes that are touched when all of a tensor is: what is broadcast counts once."""
    apart = [n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
    return float(prod(apart) * tensor.element_size() if tensor.numel() else 0)


def traffic(
    operator: Any, kind: OperationKind, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> tuple[float, float]:
    """Bytes read and written by one launch.

    A gather reads as much of its table as it puts out, a scatter in place writes as much as comes.
    Operators that only fill read nothing.
    """
    written = sum(map(size, outputs))
    in_place = operator._schema.is_mutable
    if kind == "gather/scatter" and inputs:
        table, *others = inputs
        read = sum(map(size, others))
        if in_place:
            arriving = max((size(t) for t in others), default=0.0)
            return read + arriving, arriving
        return read + min(size(table), written), written
    if base_name(operator) in ("fill", "zero", "copy") and in_place:
        return sum(map(size, inputs[1:])), written
    return sum(map(size, inputs)), written


def dtype_name(dtype: torch.dtype) -> str:
    """As the catalogue of devices has it: `bfloat16`, `float8`."""
    name = str(dtype).removeprefix("torch.")
    return "float8" if name.startswith("float8") else name
