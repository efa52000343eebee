"""The learning curve of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WINDOW = 10


def draw(records: list[dict[str, Any]], before: float, after: float, path: Path) -> None:
    """Reward of the samples and exact match on the held-out problems, by iteration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    iterations = [r["iteration"] for r in records]
    rewards = [r["reward/mean"] for r in records]
    held = {0: before, len(records): after}
    held |= {r["iteration"]: r["held_out/score"] for r in records if "held_out/score" in r}
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=130)
    axes.plot(iterations, rewards, color="#b9cfe8", linewidth=0.8)
    axes.plot(iterations, smooth(rewards), color="#1f5fa8", label=f"reward, mean of {WINDOW}")
    axes.plot(*zip(*sorted(held.items()), strict=True), "o-", color="#c2571a", markersize=4,
              label="held-out exact match, greedy")  # fmt: skip
    axes.annotate(f"{before:.1%}", (0, before), (6, -12), textcoords="offset points")
    axes.annotate(f"{after:.1%}", (len(records), after), (-34, -14), textcoords="offset points")
    axes.set(xlabel="iteration", ylabel="fraction", ylim=(0, 1.02), xlim=(-4, len(records) + 4))
    axes.set_title("GRPO on two-digit sums, after careless demonstrations", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def smooth(values: list[float]) -> list[float]:
    """The mean of each value with up to nine before it."""
    windows = (values[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
