"""Channels under random scenarios between real processes, against a model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import hypothesis
import pytest

from tests.backends.ray.channel_crew import Crew
from tests.backends.ray.channel_scenario import Scenario, scenarios

SCENARIOS = 50
"""Of one run of the test; `make soak` runs it twenty times with other seeds."""

CREWS = 2
"""Scenarios that are played at the same time, each by processes of its own."""


@pytest.fixture(scope="module")
def crews(ray_nodes: list[str]) -> Iterator[list[Crew]]:
    """Processes for all scenarios."""
    with ThreadPoolExecutor(CREWS) as pool:
        made = list(pool.map(lambda _: Crew(), range(CREWS)))
    yield made
    for crew in made:
        crew.dismiss()


def drawn(count: int, repetition: int) -> list[Scenario]:
    """Scenarios, the same for the same repetition. Each has a seed of its own: the later examples
    of one seed are like its first ones."""
    return [_example(repetition * count + number) for number in range(count)]


def _example(seed: int) -> Scenario:
    found: list[Scenario] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(scenarios())
    def collect(scenario: Scenario) -> None:
        found.append(scenario)

    collect()
    return found[-1]  # the first is the simplest that there is


@pytest.mark.soak(20)
@pytest.mark.timeout(600)
def test_scenarios(crews: list[Crew], repetition: int) -> None:
    idle: SimpleQueue[Crew] = SimpleQueue()
    for crew in crews:
        idle.put(crew)

    def play(scenario: Scenario) -> None:
        crew = idle.get()
        try:
            crew.play(scenario)
        finally:
            idle.put(crew)

    with ThreadPoolExecutor(len(crews)) as pool:
        list(pool.map(play, drawn(SCENARIOS, repetition)))
