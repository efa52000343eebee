"""What a backend measured of one node: data, so that the compiler can compare it with its model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import numpy as np
from pydantic import Field

from rlinf_graph.ir.plan import Form

Kind = Literal["chunk", "accumulate", "optimizer_step", "host", "sync", "handover"]
QUANTILES = 32


class Measurement(Form):
    """The same work, several times, on one device.

    Attributes:
        node: its name in the graph; of a `sync` the sync node's.
        kind: what was done: a chunk of a device node, the forward and backward of a micro-batch,
            an optimizer step, a host node's run, a delivery of weights from publishing to
            adopting them, or the way of what a node puts out from one worker to another.
        samples: that went through; of `chunk`s that generate, the responses.
        group: samples of a prompt.
        prompt_tokens: of the average sample, where it generates.
        lengths: quantiles, the last one the longest: of the responses where it generates, else of
            the whole sequences; none where lengths do not count.
        seconds: of each repetition, warm-up left out.
    """

    node: str
    kind: Kind
    samples: int = Field(ge=0)
    group: int = Field(default=1, ge=1)
    prompt_tokens: float = Field(default=0.0, ge=0)
    lengths: tuple[float, ...] = ()
    seconds: tuple[float, ...] = Field(min_length=1)

    @property
    def median(self) -> float:
        """Seconds of the middle repetition."""
        return median(self.seconds)


def quantiles(lengths: Sequence[int]) -> tuple[float, ...]:
    """At most 32 quantiles of some lengths, at equal steps of probability up to the longest."""
    count = min(QUANTILES, len(lengths))
    if not count:
        return ()
    steps = np.arange(1, count + 1) / count
    return tuple(np.quantile(np.asarray(lengths), steps, method="inverted_cdf").astype(float))
