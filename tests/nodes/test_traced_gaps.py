"""What cannot be captured is named, with the reason and the user's line, and never free."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlinf_graph import rl
from rlinf_graph.ir.operations import Operations

GIVEN = rl.Input((32, 64))
FULL = 2 * 32 * 64 * (64 + 8)


@torch.library.custom_op("rlinf_graph_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@torch.library.custom_op("rlinf_graph_tests::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def masked(x: Tensor) -> Tensor:
    return x[x[:, 0] > 0]


def found(x: Tensor) -> Tensor:
    return x[(x[:, 0] > 0).nonzero()[:, 0]]


def selected(x: Tensor) -> Tensor:
    return x.masked_select(x > 0).view(-1, 64)


def asked(x: Tensor) -> Tensor:
    return -x if x.sum().item() < 0 else x


def compared(x: Tensor) -> Tensor:
    return -x if (x < 0).any() else x


def custom(x: Tensor) -> Tensor:
    return doubled(x)


def unknown(x: Tensor) -> Tensor:
    return halved(x)


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.detach().numpy()))


def sets(x: Tensor) -> Tensor:
    return x.unique()[:64]


def factored(x: Tensor) -> Tensor:
    return torch.linalg.svd(x)[0][:, :1] * x


class Policy(nn.Module):
    def __init__(self, odd: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(64, 64), Odd(odd), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))


class Odd(nn.Module):
    def __init__(self, odd: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x)


def traced(odd: Callable[[Tensor], Tensor], *, backward: bool = False) -> Operations:
    volume = rl.Volume(64, rl.Lengths.fixed(16, "declared"))
    return rl.traced(lambda: Policy(odd), GIVEN, volume=volume, batch=32, backward=backward)


def lines_of(function: Callable[..., Tensor]) -> Iterator[str]:
    lines, first = inspect.getsourcelines(function)
    for line in range(first, first + len(lines)):
        yield f"tests/nodes/test_traced_gaps.py:{line}"


@pytest.mark.parametrize(
    ("odd", "what", "reason"),
    [
        (masked, "aten.index", "the shape of its result depends on values"),
        (found, "aten.nonzero", "the shape of its result depends on values"),
        (selected, "aten.masked_select", "the shape of its result depends on values"),
        (custom, "rlinf_graph_tests.doubled", "no kernel for the meta device"),
        (unknown, "rlinf_graph_tests.halved", "no formula for its operations"),
        (factored, "aten._linalg_svd", "no formula for its operations"),
    ],
)
def test_what_has_a_bound_is_named_and_the_rest_is_known(
    odd: Callable[[Tensor], Tensor], what: str, reason: str
) -> None:
    work = traced(odd)
    (gap,) = work.gaps
    assert (gap.what, gap.module) == (what, "inner")
    assert gap.reason.startswith(reason)
    assert gap.where in set(lines_of(odd))
    assert work.flops >= FULL  # the layer behind it, too
    assert 0.5 < work.known < 1


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        (asked, "aten._local_scalar_dense"),
        (compared, "aten._local_scalar_dense"),
        (through_numpy, "numpy"),
        (sets, "aten._unique2"),
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_what_ends_a_run_hides_what_would_follow(
    odd: Callable[[Tensor], Tensor], what: str, backward: bool
) -> None:
    work = traced(odd, backward=backward)
    (gap,) = work.gaps
    assert (gap.what, gap.module) == (what, "inner")
    assert gap.where in set(lines_of(odd))
    times = 3 if backward else 1
    assert work.flops == 2 * 32 * 64 * 64
    assert gap.flops == times * 2 * 32 * (64 * 8 + 8)  # the last layer's weights
    assert gap.hidden == times * (work.launches + 2) - work.launches
    assert work.known == work.launches / (times * (work.launches + 2))


def test_values_that_follow_from_constants_are_no_gap() -> None:
    def consecutive(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[0]) + 3
        return x if (positions.diff() == 1).all() else doubled(x)

    assert traced(consecutive).gaps == ()


def test_values_are_forgotten_when_data_overwrite_them() -> None:
    def overwritten(x: Tensor) -> Tensor:
        flags = torch.ones(32)
        flags[:16].copy_(x[:16, 0])
        return x if flags.sum().item() > 3 else -x

    (gap,) = traced(overwritten).gaps
    assert gap.what == "aten._local_scalar_dense"


def test_a_custom_operator_without_gradient_ends_the_backward_pass() -> None:
    work = traced(custom, backward=True)
    assert [gap.what for gap in work.gaps] == ["rlinf_graph_tests.doubled", "RuntimeError"]
    assert "register_autograd" in work.gaps[1].reason
    assert work.gaps[1].hidden > 1
    assert FULL < work.flops < 3 * FULL


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (lambda x: x @ x, "RuntimeError: a and b must have same reduction dim"),
        (lambda x: x[:, 1 // 0], "ZeroDivisionError"),
    ],
)
def test_a_module_that_raises_by_itself_is_a_diagnostic(
    odd: Callable[[Tensor], Tensor], said: str
) -> None:
    with pytest.raises(rl.CompileError) as raised:
        traced(odd)
    (found,) = raised.value.diagnostics
    assert found.code == "RG0512"
    assert said in found.message
    assert found.span is not None
    assert found.span.file == __file__
    assert found.notes == ("it was given float32 32×64",)


@pytest.mark.parametrize(
    ("given", "backward", "said"),
    [
        (rl.Input((32, "token")), False, "nothing says how large `token` is"),
        (rl.Input((32, 64), "float31"), False, "no number format 'float31'"),
        (rl.Input((32,), "int64"), True, "none of its outputs depends on a weight or input"),
    ],
)
def test_inputs_that_cannot_be_are_diagnostics(given: rl.Input, backward: bool, said: str) -> None:
    volume = rl.Volume(1, rl.Lengths.fixed(1, "declared"))
    with pytest.raises(rl.CompileError) as raised:
        rl.traced(lambda x: x + 1, given, volume=volume, backward=backward)
    (found,) = raised.value.diagnostics
    assert found.code == "RG0512"
    assert said in found.message
