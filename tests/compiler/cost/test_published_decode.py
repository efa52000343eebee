"""Inference as it was published: TensorRT-LLM's tables, Megatron-core's step times."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's own module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from validation import decode

    return decode


def test_published_throughput(decode: ModuleType) -> None:
    """With the constants as shipped; what models do that were not fitted, the benchmark says."""
    from validation.rows import DATA, read_rows

    cases, left_out = decode.KIND.cases(read_rows(DATA / "published_decode.csv"))
    assert len(cases) == 266
    assert left_out == []
    found = [decode.KIND.predict(case, decode.KIND.shipped) / case.measured for case in cases]
    errors = np.abs(np.asarray(found) - 1)
    assert np.median(errors) < 0.12
    assert np.quantile(errors, 0.9) < 0.35


def test_constants_are_few_and_within_what_is_possible(decode: ModuleType) -> None:
    from rlinf_graph.compiler.cost.fitted import parameters

    known = parameters(decode.KIND.shipped)
    assert len(known) <= 12
    assert all(one.low <= one.value <= one.high for one in known)
