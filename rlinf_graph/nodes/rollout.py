"""Sampling from a policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, overload

from rlinf_graph.dsl.model import Frozen, Model, Served
from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir.batches import (
    Prompts,
    ProximalLogprobs,
    ReferenceLogprobs,
    Rollouts,
    StepValues,
    Transitions,
    Values,
)
from rlinf_graph.ir.diagnostic import Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Port, Unit
from rlinf_graph.ir.work import Forward, Generate, Lengths, Volume
from rlinf_graph.nodes.engine import Sampling
from rlinf_graph.nodes.env import step_values
from rlinf_graph.nodes.execution import engine_of, execution, metric
from rlinf_graph.nodes.first_finished import first_of
from rlinf_graph.nodes.lengths import Declared, check_lengths, response_lengths


def _kept_and_decoded(options: Mapping[str, Any]) -> tuple[Lengths, Lengths]:
    """Response lengths of what is returned, and of all that is decoded."""
    lengths = response_lengths(options["max_tokens"], options["lengths"])
    samples, keep = options["samples"], options["keep"]
    return first_of(lengths, samples, samples if keep is None else keep)


def _volume(call: Call) -> tuple[Volume, ...]:
    kept = call.options["keep"] or call.options["samples"]
    prompts, (response, _) = call.first, _kept_and_decoded(call.options)
    prompt = prompts.lengths.mean
    whole = Lengths(tuple(prompt + q for q in response.quantiles), response.origin)
    return (Volume(prompts.samples * kept, whole, prompt, kept),)


def _work(call: Call) -> Generate:
    prompts, samples = call.first, call.options["samples"]
    _, decoded = _kept_and_decoded(call.options)
    return Generate(prompts.samples * samples, prompts.lengths.mean, decoded, samples)


def _check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    """The sampling options are in range."""
    least = {"samples": 1, "max_tokens": 1, "temperature": 0.0}
    for name, bound in least.items():
        if node.option(name) < bound:
            value = node.option(name)
            message = f"`{name}` of `{node.name}` is {value}; it has to be at least {bound:g}"
            yield Diagnostic("RG0104", message, node.at(name))
    keep, samples = node.option("keep"), node.option("samples")
    if keep is not None and not 1 <= keep <= samples:
        message = f"`keep` of `{node.name}` is {keep}; it lies between 1 and samples={samples}"
        yield Diagnostic("RG0104", message, node.at("keep"))
    if "" in node.option("stop"):
        message = f"an empty text in `stop` of `{node.name}` would end every response at once"
        yield Diagnostic("RG0104", message, node.span)
    if not 0 < node.option("top_p") <= 1:
        message = f"`top_p` of `{node.name}` is {node.option('top_p')}; it lies in (0, 1]"
        yield Diagnostic("RG0104", message, node.at("top_p"))
    yield from check_lengths(node)


@node(
    unit=Unit.SAMPLE,
    ports={"policy": Port.SERVED},
    heads={"policy": ("lm",)},
    volume=_volume,
    work=_work,
    check=_check,
)
def rollout(
    policy: Model,
    prompts: Prompts,
    *,
    samples: int = 1,
    max_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: tuple[str, ...] = (),
    lengths: Declared = None,  # noqa: ARG001  read when planning
    keep: int | None = None,
) -> Rollouts:
    """Sample responses to prompts.

    Args:
        policy: its served port is read.
        prompts: `n` of them.
        samples: responses to each prompt; the result has `n * samples`, or `n * keep`, those of a
            prompt together.
        max_tokens: at most that many tokens a response.
        temperature: of the softmax; 0 is greedy.
        top_p: smallest set of tokens with at least this probability; 1 keeps all.
        stop: texts that end a response, besides the tokenizer's end token.
        lengths: what to plan with: the response length in tokens, its quantiles at equal steps of
            probability, or the path of a JSONL file of measured lengths. Does not change what is
            sampled.
        keep: of the `samples` responses to a prompt return only the `keep` that finish first: with
            the fewest tokens, among equals the first drawn. The others are given up as soon as
            they have, so that no prompt waits for its longest response. It prefers short answers,
            which are not those of the policy on average: training on them shortens answers.

    The log-probabilities in the result are those of the distribution sampled from, after
    temperature and truncation. Training and `logprobs` score at the same temperature; truncation
    they do not repeat, so with `top_p < 1` a ratio can exceed 1 on-policy.
    """
    sampling = Sampling(samples, max_tokens, temperature, top_p, tuple(stop), keep)
    here = execution()
    made = engine_of("policy", policy).generate(
        prompts, sampling, here.key, here.versions.get("policy", 0)
    )
    metric("rollout/response_tokens", made.response_lengths)
    metric("rollout/response_tokens_max", made.response_lengths, reduce="max")
    metric("rollout/cut_off", 1.0 - made.finished.double())
    return made


def _forward(call: Call) -> Forward:
    volume = call.volumes["rollouts"]
    return Forward(volume.samples, volume.lengths)


def _forward_value(call: Call) -> Forward:
    volume = call.volumes["rollouts"]
    return Forward(volume.samples, volume.lengths, head="value")


@node(label="logprobs", unit=Unit.SAMPLE, heads={"model": ("lm",)}, work=_forward)
def reference_logprobs(model: Frozen | Served, rollouts: Rollouts) -> ReferenceLogprobs:
    """Log-probabilities of a frozen model, or of a named served port, packed."""
    values = engine_of("model", model).logprobs(rollouts)
    return ReferenceLogprobs(
        index=rollouts.index, group=rollouts.group, lengths=rollouts.lengths, values=values
    )


@node(
    label="logprobs",
    unit=Unit.SAMPLE,
    ports={"model": Port.TRAINED},
    heads={"model": ("lm",)},
    work=_forward,
)
def proximal_logprobs(model: Model, rollouts: Rollouts) -> ProximalLogprobs:
    """Log-probabilities of a model in training as it was when the iteration began, packed."""
    values = engine_of("model", model).logprobs(rollouts)
    return ProximalLogprobs(
        index=rollouts.index, group=rollouts.group, lengths=rollouts.lengths, values=values
    )


@overload
def logprobs(model: Frozen | Served, rollouts: Rollouts) -> ReferenceLogprobs: ...
@overload
def logprobs(model: Model, rollouts: Rollouts) -> ProximalLogprobs: ...
def logprobs(
    model: Model | Frozen | Served, rollouts: Rollouts
) -> ReferenceLogprobs | ProximalLogprobs:
    """Log-probabilities of the policy's tokens under another model, or under itself in training.

    Args:
        model: frozen, or a named served port: a reference, for a KL term. In training: the
            proximal policy, its trained port as it was when the iteration began.
        rollouts: `n` sequences; the result is packed over their tokens, 0 where the mask is false.
    """
    if isinstance(model, Frozen | Served):
        return reference_logprobs(model, rollouts)
    return proximal_logprobs(model, rollouts)


def _values_volume(call: Call) -> tuple[Volume, ...]:
    return (call.volumes["rollouts"],)


@node(
    label="values",
    unit=Unit.SAMPLE,
    ports={"critic": Port.TRAINED},
    heads={"critic": ("value",)},
    volume=_values_volume,
    work=_forward_value,
)
def token_values(critic: Model, rollouts: Rollouts) -> Values:
    """State values: for each token that of the state it was chosen in, and one for the end."""
    return Values(
        index=rollouts.index,
        group=rollouts.group,
        lengths=rollouts.lengths,
        values=engine_of("critic", critic).values(rollouts),
        mask=rollouts.mask,
    )


@overload
def values(critic: Model, samples: Rollouts) -> Values: ...
@overload
def values(critic: Model, samples: Transitions) -> StepValues: ...
def values(critic: Model, samples: Rollouts | Transitions) -> Values | StepValues:
    """State values of a critic.

    Args:
        critic: its trained port as it was when the iteration began.
        samples: rollouts: for each token the value of the state it was chosen in, and one for the
            end. Steps of environments: for each the value of the observation, and one for the last.
    """
    if isinstance(samples, Transitions):
        return step_values(critic, samples)
    return token_values(critic, samples)
