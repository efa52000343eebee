"""Gives each consumer of a channel as much to do as the others, before anybody has begun."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from rlinf_graph.backends.ray.channel.channel import Channel
from rlinf_graph.backends.ray.channel.state import Key


class Spread:
    """Puts items under keys, one for each consumer, so that the weights come out even.

    For consumers that have to work in step, such as data-parallel trainers. Where they need not,
    let all of them get from one key: whoever is free takes the next item.
    """

    def __init__(self, channel: Channel, keys: Sequence[Key]) -> None:
        """Nothing has been put.

        Raises:
            ValueError: where there is no key, or one twice.
        """
        if not keys or len(set(keys)) < len(keys):
            raise ValueError(f"one key for each consumer, not {list(keys)}")
        self._channel, self._keys = channel, list(keys)
        self._loads = [0.0] * len(keys)

    def put(self, items: Sequence[Any], weights: Sequence[float]) -> list[Key]:
        """Put all items: the heaviest first, each under the key that has least so far.

        No key is then more than a third above the best possible (Graham 1969, "Bounds on
        Multiprocessing Timing Anomalies", theorem 2). What one key gets is put in the order of
        `items`. What was put earlier counts.

        Args:
            items: any.
            weights: of each, such as its tokens; also the channel's weight.

        Returns:
            The key of each item.

        Raises:
            ValueError: where there are not as many weights as items.
            ChannelError: see `Channel.put`.
        """
        if len(items) != len(weights):
            raise ValueError(f"{len(items)} items and {len(weights)} weights")
        chosen = self._chosen(weights)
        for item, weight, place in zip(items, weights, chosen, strict=True):
            self._channel.put(item, self._keys[place], weight=weight)
        return [self._keys[place] for place in chosen]

    def _chosen(self, weights: Sequence[float]) -> list[int]:
        heap = [(load, place) for place, load in enumerate(self._loads)]
        heapq.heapify(heap)
        chosen = [0] * len(weights)
        for number in sorted(range(len(weights)), key=lambda number: -weights[number]):
            load, place = heap[0]
            heapq.heapreplace(heap, (load + weights[number], place))
            chosen[number] = place
        for load, place in heap:
            self._loads[place] = load
        return chosen
