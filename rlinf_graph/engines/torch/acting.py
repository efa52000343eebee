"""What small networks do and say: actions, their log-probabilities, values of states."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rlinf_graph.engines.torch.network import Network
from rlinf_graph.engines.torch.noise import key_stream, uniform, uniform_to_gumbel
from rlinf_graph.engines.torch.sampling import wide
from rlinf_graph.ir.batches import Actions, Observations, Transitions
from rlinf_graph.ir.packed import host
from rlinf_graph.nodes.engine import Key, Outputs

BLOCK_STEPS = 64
BLOCK_NUMBERS = 1 << 16
"""Noise is drawn for so many steps at once, within so many numbers: one draw costs as much."""

MOST_BLOCKS = 64
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Noise:
    """Noise of a policy, kept for the steps to come.

    A number depends on the key, the copy's index and its own place only: not on the other copies,
    nor on how many steps are drawn at once.
    """

    def __init__(self) -> None:
        self._blocks: dict[object, Tensor] = {}

    def of(self, network: Network, key: Key, index: Tensor, like: Tensor) -> Tensor:
        """Gumbel noise for choices, normal noise for arrays.

        Args:
            network: whose actions are chosen.
            key: its last place in a loop is the step.
            index: int64 `(n,)`, of the copies.
            like: `(n, size)`, of the shape, type and device that the noise should have.
        """
        around, step = key.steps[:-1], key.steps[-1] if key.steps else 0
        steps = max(1, min(BLOCK_STEPS, BLOCK_NUMBERS // max(1, like.numel())))
        first = step - step % steps
        name = key.seed, key.node, key.iteration, around, first, index.cpu().numpy().tobytes()
        block = self._blocks.get(name)
        if block is None:
            if len(self._blocks) >= MOST_BLOCKS:
                self._blocks.clear()
            places = torch.arange(first, first + steps, device=index.device)
            named = key_stream(replace(key, steps=around))
            drawn = uniform(named, index, places, like.shape[1])
            gaussian = network.log_std is not None
            noise = torch.special.ndtri(drawn) if gaussian else uniform_to_gumbel(drawn)
            block = self._blocks[name] = noise.to(like)
        return block[step - first]


@torch.no_grad()
def act(
    network: Network,
    noise: Noise,
    observations: Observations,
    key: Key,
    version: int,
    *,
    greedy: bool,
) -> Actions:
    """Choose an action in each environment; see `Engine.act`.

    A greedy choice is that of a point mass: its log-probability is 0.
    """
    said = wide(network(observations.values))
    drawn = None if greedy else noise.of(network, key, observations.index, said)
    if network.log_std is None:
        logprobs = torch.log_softmax(said, dim=-1)
        chosen = (logprobs if drawn is None else logprobs + drawn).argmax(dim=-1)
        found = logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)
    else:
        log_std = wide(network.log_std)
        chosen = said if drawn is None else torch.addcmul(said, log_std.exp(), drawn)
        found = _gaussian(said, log_std, chosen)
    home = observations.index.device
    return Actions(
        index=observations.index,
        group=observations.group,
        values=chosen.to(home),
        logprobs=(torch.zeros_like(found) if greedy else found).to(home),
        versions=torch.full_like(observations.index, version),
    )


def outputs(network: Network, samples: Transitions, *, entropy: bool) -> Outputs:
    """What a network says of the steps of environments, with gradients, packed over the steps.

    The batch is on the network's device.
    """
    said = wide(network(chosen_in(samples)))
    if network.sizes.head == "value":
        return Outputs(values=said[:, 0])
    if network.log_std is not None:
        log_std = wide(network.log_std)
        found = _gaussian(said, log_std, samples.actions.to(said.dtype))
        spread = (log_std + 0.5 + HALF_LOG_2PI).sum().expand(len(found)) if entropy else None
        return Outputs(found, spread)
    logprobs = torch.log_softmax(said, dim=-1)
    found = logprobs.gather(1, samples.actions.unsqueeze(1)).squeeze(1)
    return Outputs(found, -(logprobs.exp() * logprobs).sum(dim=-1) if entropy else None)


@torch.no_grad()
def step_values(network: Network, transitions: Transitions) -> tuple[Tensor, Tensor]:
    """Values of all observations, packed with one more than the steps, and of the last ones of
    truncated episodes, packed over the steps.

    Raises:
        ValueError: for another number of last observations than truncated episodes.
    """
    home = transitions.observations.device
    values = wide(network(transitions.observations))[:, 0].to(home)
    finals = values.new_zeros(transitions.truncated.shape)
    last = [observation for row in transitions.finals for observation in row]
    if len(last) != int(transitions.truncated.sum()):
        raise ValueError(f"{len(last)} last observations of "
                         f"{int(transitions.truncated.sum())} truncated episodes")  # fmt: skip
    if last:
        said = wide(network(torch.stack(last)))[:, 0]
        finals[transitions.truncated] = said.to(home)
    return values, finals


def chosen_in(samples: Transitions) -> Tensor:
    """The observations in which actions were chosen, packed over the steps."""
    lengths, given = samples.lengths, samples.observations
    known = host(lengths)
    if len(known) and (known == known[0]).all():
        shape = given.shape[1:]
        rows = given.reshape(len(known), int(known[0]) + 1, *shape)
        return rows[:, :-1].reshape(-1, *shape)
    kept = torch.ones(len(given), dtype=torch.bool, device=given.device)
    kept[(lengths + 1).cumsum(0) - 1] = False
    return given[kept]


def _gaussian(mean: Tensor, log_std: Tensor, values: Tensor) -> Tensor:
    """Log-density `(n,)` of values `(n, size)` under independent normals."""
    apart = (values - mean) * (-log_std).exp()
    return -(apart.square() * 0.5 + (log_std + HALF_LOG_2PI)).sum(dim=-1)
