"""A node on a device, without a model, that fails on demand, and one on the host that reads slowly.

Two processes that load little: what fails can be tried often.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from rlinf_graph import rl

DATA = Path(__file__).parents[2] / "demo" / "arithmetic"
CALLS: list[int] = []


class Parcel(rl.Batch):
    """Values with a remark of any type."""

    values: object = rl.per_sample()
    notes: list[object] = rl.objects()


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(values)


def work(call: rl.Call) -> rl.Work:
    return rl.traced(Small, rl.Input(("samples", 2), "float32"), volume=call.first, batch=4)


def happen(kind: str) -> None:
    if kind == "raise":
        raise ValueError("no such answer")
    if kind == "exit":
        os._exit(7)
    if kind == "leave":
        raise SystemExit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "hold":
        threading.Event().wait()


@rl.node(place=rl.Place.DEVICE, work=work)
class Maker:
    """Fills parcels; in its second call something happens."""

    kind: str = "none"
    megabytes: float = 0.0

    def __call__(self, prompts: rl.Prompts) -> Parcel:
        CALLS.append(1)
        count = len(prompts)
        notes: list[Any] = [None] * count
        if len(CALLS) == 2:
            happen(self.kind)
            notes[0] = threading.Lock() if self.kind == "unpicklable" else None
        values = torch.zeros(count, max(1, int(self.megabytes * (1 << 18) / count)))
        return Parcel(index=prompts.index, group=prompts.group, values=values, notes=notes)


@rl.node
class Reader:
    """Takes parcels, each with a pause; so does the driver learn of an iteration."""

    pause_s: float = 0.0

    def __call__(self, parcels: Parcel) -> None:
        time.sleep(self.pause_s)


@rl.pipeline
def faulty(kind: str = "none", megabytes: float = 0.0, pause_s: float = 0.0) -> None:
    prompts = rl.dataset(str(DATA / "train.jsonl"), batch=4)
    parcels = Maker(kind=kind, megabytes=megabytes)(prompts)
    Reader(pause_s=pause_s)(parcels)
