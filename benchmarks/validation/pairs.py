"""Synchronous and asynchronous rows of one model, device type and version: which was faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from validation.figures import APART
from validation.fitting import Prediction
from validation.rows import plain


def judge_pairs(predictions: Sequence[Prediction], compared: float) -> dict[str, Any]:
    """Whether the faster one per device was called right.

    Args:
        predictions: of RL steps.
        compared: logarithm of two predictions' ratio below which they are called a tie.

    Returns:
        `pairs`, each with its measured and predicted ratio of device seconds (synchronous to
        asynchronous) and the call; `counts` of calls, for pairs that differ by 15 % and for others;
        `median_off`, of the logarithm of predicted by measured ratio.
    """
    found: list[dict[str, Any]] = []
    for one, other in product(predictions, repeat=2):
        if _mode(one) == "sync" and _mode(other) == "async" and _alike(one, other):
            measured = _ratio(one, other, measured=True)
            predicted = _ratio(one, other, measured=False)
            found.append(
                {
                    "synchronous": one.case.row.name,
                    "asynchronous": other.case.row.name,
                    "measured": measured,
                    "predicted": predicted,
                    "apart": bool(abs(np.log(measured)) >= np.log(1 + APART)),
                    "call": _call(measured, predicted, compared),
                }
            )
    clear = Counter(pair["call"] for pair in found if pair["apart"])
    close = Counter(pair["call"] for pair in found if not pair["apart"])
    off = [abs(np.log(pair["predicted"] / pair["measured"])) for pair in found]
    return {
        "counts": {"apart": dict(clear), "close": dict(close)},
        "median_off": float(np.median(off)) if off else None,
        "pairs": found,
    }


def _call(measured: float, predicted: float, compared: float) -> str:
    if abs(np.log(predicted)) < compared:
        return "tie"
    return "won" if (measured > 1) == (predicted > 1) else "wrong"


def _ratio(one: Prediction, other: Prediction, *, measured: bool) -> float:
    """Device seconds of one over those of the other."""

    def spent(made: Prediction) -> float:
        seconds = made.case.measured if measured else made.predicted
        return seconds * made.case.row.whole("n_gpus")

    return spent(one) / spent(other)


def _mode(made: Prediction) -> str:
    return "async" if made.case.payload.setting.depth else "sync"


def _alike(one: Prediction, other: Prediction) -> bool:
    """The same model, device type, number formats, version, and algorithm."""
    return all(
        key(one.case.row) == key(other.case.row)
        for key in (
            lambda row: plain(row.text("model")),
            lambda row: plain(row.text("gpu")),
            lambda row: row.text("source"),
            lambda row: row.text("algo"),
        )
    ) and (one.case.payload.setting.dtypes == other.case.payload.setting.dtypes)
