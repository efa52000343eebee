"""One Ray session serves the whole test run; `--soak` repeats the tests that are marked for it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak",
        action="store_true",
        help="run every test marked soak(N) N times over, each under its own timeout",
    )


def pytest_configure(config: pytest.Config) -> None:
    if find_spec("hypothesis"):  # not where engines are that do not go with the other packages
        from hypothesis import settings

        settings.register_profile("any machine", deadline=None)
        settings.load_profile("any machine")
    if config.getoption("--soak"):
        config.pluginmanager.register(AtOnce(config))


class AtOnce:
    """Shows a failure when it comes, since `--soak` ends hours later."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With `--soak`, a test marked `soak(N)` becomes N tests, which differ in `repetition`.

    Without it, one marked `soak(N, M)` becomes M tests.
    """
    marker = metafunc.definition.get_closest_marker("soak")
    if marker is None:
        return
    many, few = (*marker.args, 1)[:2]
    times = many if metafunc.config.getoption("--soak") else few
    if times == 1:
        return
    if "repetition" not in metafunc.fixturenames:
        metafunc.fixturenames.append("repetition")
    metafunc.parametrize("repetition", range(times), indirect=True)


@pytest.fixture
def repetition(request: pytest.FixtureRequest) -> int:
    """Which run of a test marked `soak(N)` this is, from 0, for seeds; 0 without `--soak`."""
    return getattr(request, "param", 0)


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[list[str]]:
    """Two Ray nodes with four processor cores each; their ids."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 4})
    nodes.add_node(num_cpus=4)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield [node["NodeID"] for node in ray.nodes()]
    finally:
        ray.shutdown()
        nodes.shutdown()
