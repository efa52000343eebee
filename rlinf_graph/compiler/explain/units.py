"""One unit of time for a whole report, and sizes that can be read."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Shows seconds in one unit with a fixed number of decimals."""

    unit: str
    scale: float
    decimals: int

    @classmethod
    def for_iteration(cls, seconds: float) -> Clock:
        """The unit in which an iteration has three digits or more before the rounding."""
        unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3)
        if seconds < 1e-3:
            unit, scale = "µs", 1e6
        shown = seconds * scale
        return cls(unit, scale, 2 if shown < 10 else 1 if shown < 1000 else 0)

    def number(self, seconds: float) -> str:
        """Without the unit; `<0.1` for what would round to nothing."""
        text = f"{seconds * self.scale:,.{self.decimals}f}"
        least = 10.0**-self.decimals
        if seconds > 0 and seconds * self.scale < least / 2:
            return f"<{least:.{self.decimals}f}"
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text

    def between(self, interval: tuple[float, float]) -> str:
        """The ends of an interval with three digits at least, without the unit."""
        return " to ".join(rate(seconds * self.scale) for seconds in interval)

    def text(self, seconds: float) -> str:
        """With the unit."""
        return f"{self.number(seconds)} {self.unit}"


def gigabytes(size: float) -> str:
    """Two to three digits, without the unit."""
    amount = size / 1e9
    if amount >= 9.95:
        return f"{amount:,.0f}"
    return f"{amount:.1f}" if amount >= 0.995 else f"{amount:.2f}"


def small(seconds: float) -> str:
    """A duration on its own, in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def rate(figure: float) -> str:
    """Three digits at least, no exponent."""
    decimals = 0 if figure >= 100 else 1 if figure >= 10 else 2
    return f"{figure:,.{decimals}f}" if figure >= 0.995 else f"{figure:.3g}"


def off(width: float) -> str:
    """By how much a figure may be off upwards, from half the width of its interval."""
    share = round(100 * math.expm1(width))
    return f"±{share:,}%" if share else "±<1%"


def percent(share: float) -> str:
    """A share in whole per cent; 100 only for all of it."""
    return f"{min(99, round(100 * share)) if share < 0.995 else 100}%"
