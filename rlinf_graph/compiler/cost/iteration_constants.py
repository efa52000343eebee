"""What RL adds to inference and training by themselves: fitted to published RL steps."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph.compiler.cost.fitted import fitted


@dataclass(frozen=True)
class IterationConstants:
    """Constants of an RL iteration, on one kind of device.

    Those of passes and decoding were fitted to runs that do nothing else and are tuned for it.
    """

    tail: float = fitted(
        0.53, 0.4, 1.2, "standard deviation of the logarithm of response lengths, before the limit"
    )
    trainer: float = fitted(1.37, 1.0, 2.0, "time of passes, by that of a tuned pretraining run")
    refit: float = fitted(0.296, 0.1, 1.0, "share of a link's bandwidth that a weight sync reaches")
    matrix_s: float = fitted(
        0.689e-3, 0.1e-3, 2e-3, "host seconds of a weight sync for each matrix that is named and sent"
    )
    wake_s: float = fitted(
        15.0, 1.0, 15.0, "seconds to wake a sampling engine and put it to sleep: cache, graphs"
    )
    host_link: float = fitted(
        0.114, 0.1, 0.6, "share of the link to host memory that loading and offloading reach"
    )
    driver_s: float = fitted(2.46, 0.5, 15.0, "seconds of an iteration that no node accounts for")


ALONE = IterationConstants(trainer=1.0, matrix_s=0.0, wake_s=0.0, host_link=1.0)
"""Nothing added: of engines that were measured in RL iterations themselves."""
