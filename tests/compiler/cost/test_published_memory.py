"""Peaks of memory that torchtitan published, from the operators; nothing is fitted."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's own module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from validation import memory

    return memory


def test_the_peaks_of_torchtitan(memory: ModuleType) -> None:
    """At most half as far off as the best constant, and 5 % at the median."""
    from validation.rows import DATA, read_rows

    cases, left_out = memory.cases(read_rows(DATA / "published_training.csv"))
    rows = [case for case in cases if case.row.text("source") == "torchtitan"]
    assert len(rows) == 18
    assert not [out for out in left_out if out.row.text("source") == "torchtitan"]
    errors = [abs(memory.predict(case, memory.KIND.shipped) / case.measured - 1) for case in rows]
    _value, best = memory.best_constant([case.measured for case in rows])
    assert np.median(errors) <= 0.05
    assert np.median(errors) <= best / 2
    assert max(errors) < 0.1


def test_the_best_constant_is_near_most_rows(memory: ModuleType) -> None:
    """It hits two of three; of two rows, 1 and 2, the mean error of both is least at 1."""
    value, error = memory.best_constant([2.0, 2.0, 8.0])
    assert (value, error) == (2.0, 0.0)
    value, error = memory.best_constant([1.0, 2.0])
    assert value == 1
    assert error == pytest.approx(0.25)
