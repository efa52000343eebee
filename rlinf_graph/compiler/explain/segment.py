"""A stretch of time on devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["work", "switch", "weights"]


@dataclass(frozen=True)
class Segment:
    """A stretch of a lane, in seconds from the window's start."""

    node: str
    kind: Kind
    start_s: float
    end_s: float
