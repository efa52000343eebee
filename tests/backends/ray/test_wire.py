"""Small batches as bytes, and what a rank tells when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlinf_graph.backends.ray import line, wire
from rlinf_graph.ir.batches import Rewards, Rollouts


def rollouts(count: int) -> Rollouts:
    lengths = torch.arange(1, count + 1)
    tokens = int(lengths.sum())
    return Rollouts(
        index=torch.arange(count), group=torch.arange(count) // 2, lengths=lengths,
        tokens=torch.arange(2 * tokens)[::2],  # not contiguous
        mask=torch.arange(tokens) % 3 == 0,
        logprobs=torch.randn(tokens, dtype=torch.float64, requires_grad=True),
        versions=torch.full((tokens,), -1), prompt_lengths=torch.ones(count, dtype=torch.int64),
        finished=torch.ones(count, dtype=torch.bool), temperature=torch.ones(count).bfloat16(),
        prompts=[f"{i}" for i in range(count)], responses=["ü"] * count,
        columns=[{"truth": i} for i in range(count)],
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_batch_comes_back_with_memory_of_its_own(count: int) -> None:
    sent = rollouts(count)
    data = wire.dumps(sent)
    first, second = wire.loads(data), wire.loads(data)
    assert isinstance(first, Rollouts)
    for name, value in vars(sent).items():
        made = getattr(first, name)
        if not isinstance(value, torch.Tensor):
            assert made == value
            continue
        assert (made.dtype, made.shape) == (value.dtype, value.shape)
        assert torch.equal(made, value.detach())
        assert not made.requires_grad
        made.zero_()
        assert torch.equal(getattr(second, name), value.detach())


def test_fields_of_several_dimensions_and_types() -> None:
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool):
        values = torch.arange(6).reshape(3, 2).to(kind)
        sent = Rewards(index=torch.arange(3), group=torch.arange(3), values=values)
        made: Any = wire.loads(wire.dumps(sent))
        assert made.values.dtype is kind
        assert torch.equal(made.values, values)


class Post:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, *message: Any) -> None:
        self.sent.append(message)


def test_what_is_told_waits_for_more_beside_short_work_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post, now = Post(), [100.0]
    monkeypatch.setattr(line, "Client", lambda _address: post)
    monkeypatch.setattr(line, "HOLD_S", 0.2)
    monkeypatch.setattr(line, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told = line.Line(None, None, ("node", 0))  # pyright: ignore[reportArgumentType]  neither is used here
    told.flush_before(9.0)
    assert post.sent == []
    told.tell("put", 1)
    told.flush_before(0.01)
    told.tell("put", 2)
    told.flush_before(0.01)
    assert post.sent == []
    told.flush_before(0.3)
    assert post.sent == [(("node", 0), [("put", (1,)), ("put", (2,))], None)]
    told.tell("put", 3)
    now[0] += 0.25  # longer than anything may wait
    told.flush_before(0.0)
    assert len(post.sent) == 2
