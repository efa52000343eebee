"""What stands between the nodes of an iteration: fitted to published RL steps."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.fitted import fitted


@dataclass(frozen=True)
class IterationConstants:
    """Constants of synchronisation and of handing devices from one engine to another."""

    refit: float = fitted(0.3, 0.01, 1.0, "share of a link's bandwidth that a weight sync reaches")
    matrix_s: float = fitted(
        0.3e-3, 0.0, 3e-3, "host seconds of a weight sync for each matrix that is named and sent"
    )
    wake_s: float = fitted(
        3.0, 0.0, 20.0, "seconds to wake a sampling engine and put it to sleep: cache, graphs"
    )
    tail: float = fitted(
        0.8, 0.2, 1.6, "standard deviation of the logarithm of response lengths, before the limit"
    )
    driver_s: float = fitted(5.0, 0.0, 30.0, "seconds of an iteration that no node accounts for")
