"""Skips all of this folder's tests where Megatron-core is missing."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.engines.megatron.crew import Crew
from tests.engines.megatron.small import write

NEEDS = pytest.mark.skipif(
    find_spec("megatron") is None,
    reason="megatron-core is not installed: pip install -r requirements/megatron.txt",
)


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.end()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("megatron")
    made: dict[str, Path] = {}

    def of(family: str, **settings: Any) -> Path:
        key = "-".join([family, *(f"{k}-{v}" for k, v in settings.items())])
        if key not in made:
            made[key] = write(folder / key, family, **settings)
        return made[key]

    return of
