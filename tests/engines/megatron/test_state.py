"""What training keeps: in float32 and bfloat16, over a state and over the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engines.megatron import small, work
from tests.engines.megatron.conftest import NEEDS
from tests.engines.megatron.crew import Crew
from tests.engines.megatron.test_parity import Expected, cut, name_of

pytestmark = [NEEDS, pytest.mark.engines, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("parallel", "options"),
    [
        ({"tp": 2}, {}),
        ({"pp": 2}, {"dtype": "bfloat16"}),
        ({"dp": 2, "shard": "optimizer"}, {"dtype": "bfloat16"}),
    ],
    ids=name_of,
)
def test_training_goes_on_from_its_state(
    crew: Crew, model: Callable[..., Path], parallel: dict[str, Any], options: dict[str, Any]
) -> None:
    for found in crew.run(2, work.resume, model("tied"), parallel, options):
        assert found["lost"] == 0
        assert found["moved"] > 1e-4
        assert "RG0604" in found["refusal"]


@pytest.mark.parametrize("parallel", [{"tp": 2}, {"dp": 2, "shard": "optimizer"}], ids=name_of)
def test_bfloat16_learns_as_the_torch_engine_does(
    crew: Crew, model: Callable[..., Path], parallel: dict[str, Any]
) -> None:
    path = model("qwen2")
    expected = Expected(path, "lm", "bfloat16")
    start = small.stored(path)
    reports = crew.run(2, work.train, path, parallel, {"dtype": "bfloat16"}, 10)
    apart = moved = count = 0.0
    for report in reports:
        for shard in report.shards:
            whole = expected.trained[shard.name]
            apart += float((shard.values - cut(shard, whole)).float().abs().sum())
            moved += float((cut(shard, whole) - cut(shard, start[shard.name])).float().abs().sum())
            count += shard.values.numel()
    assert moved / count > 1e-3
    assert apart < 0.3 * moved  # Adam's first steps are signs of gradients, small ones by chance
