"""How good a policy is, on problems it is not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlinf_graph.dsl.model import Model
from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir.batches import Prompts
from rlinf_graph.ir.diagnostic import Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Place, Port, Role, Unit
from rlinf_graph.ir.work import Generate, Volume
from rlinf_graph.nodes.engine import Sampling
from rlinf_graph.nodes.execution import engine_of, execution, metric
from rlinf_graph.nodes.lengths import Declared, check_lengths, response_lengths
from rlinf_graph.nodes.reward import columns_fit
from rlinf_graph.nodes.verifier import Verifier, rewards_of

if TYPE_CHECKING:
    from torch import Tensor


def _work(call: Call) -> Generate:
    prompts, samples = call.first, call.options["samples"]
    response = response_lengths(call.options["max_tokens"], call.options["lengths"])
    return Generate(prompts.samples * samples, prompts.lengths.mean, response, samples)


def _volume(_call: Call) -> tuple[Volume, ...]:
    return ()


def _check(node: Node, graph: Graph) -> Iterator[Diagnostic]:
    """The options are in range and go together, and the verifier's parameters are columns."""
    for name, least in {"every": 1, "samples": 1, "max_tokens": 1, "temperature": 0.0}.items():
        if node.option(name) < least:
            message = f"`{name}` of `{node.name}` is {node.option(name)}; it has to be at least"
            yield Diagnostic("RG0104", f"{message} {least:g}", node.at(name))
    samples, pass_at = node.option("samples"), node.option("pass_at")
    if pass_at is not None and not 1 <= pass_at <= samples:
        message = (
            f"`pass_at` of `{node.name}` is {pass_at}; it lies between 1 and samples={samples}"
        )
        yield Diagnostic(
            "RG0104", message, node.at("pass_at"), help=(f"samples={2 * max(1, pass_at)}",)
        )
    if samples > 1 and node.option("temperature") == 0:
        message = (
            f"`{node.name}` takes {samples} greedy samples of a prompt, which are all the same"
        )
        yield Diagnostic(
            "RG0104", message, node.at("samples"), help=("samples=1, or temperature=1.0",)
        )
    yield from check_lengths(node)
    yield from columns_fit(node, graph, "prompts")


@node(
    role=Role.EVALUATE,
    place=Place.DEVICE,
    unit=Unit.SAMPLE,
    ports={"policy": Port.SERVED},
    heads={"policy": ("lm",)},
    volume=_volume,
    work=_work,
    check=_check,
)
def evaluate(
    policy: Model,
    prompts: Prompts,
    function: Verifier,
    *,
    every: int = 1,  # noqa: ARG001  read when lowering
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 512,
    stop: tuple[str, ...] = (),
    pass_at: int | None = None,
    name: str = "eval",
    lengths: Declared = None,  # noqa: ARG001  read when planning
) -> None:
    """Answer problems and emit how good the answers are.

    Args:
        policy: its served port is read.
        prompts: `n` problems.
        function: as in `verify`; an answer is right when it gives 1 or more.
        every: in every that many iterations, beginning with the first.
        samples: answers to each problem.
        temperature: 0 is greedy, and needs one sample only.
        max_tokens: at most that many tokens an answer.
        stop: texts that end an answer, besides the tokenizer's end token.
        pass_at: emit pass@k for this k, at most `samples`.
        name: of the metrics: `{name}/score`, the mean of the function over all answers;
            `{name}/pass@{k}`; `{name}/response_tokens`; `{name}/cut_off`.
        lengths: what to plan with, as in `rollout`.

    Raises:
        CompileError: RG0506 and RG0507, as in `verify`.
    """
    here = execution()
    sampling = Sampling(samples, max_tokens, temperature, 1.0, tuple(stop))
    made = engine_of("policy", policy).generate(
        prompts, sampling, here.key, here.versions.get("policy", 0)
    )
    given = made.logprobs.new_tensor(rewards_of(made, function))
    metric(f"{name}/score", given)
    metric(f"{name}/response_tokens", made.response_lengths)
    metric(f"{name}/cut_off", 1.0 - made.finished.double())
    if pass_at is not None:
        names, owner = made.group.unique(return_inverse=True)
        size = owner.bincount(minlength=len(names))
        right = owner[given >= 1].bincount(minlength=len(names))
        metric(f"{name}/pass@{pass_at}", pass_at_k(size, right, pass_at))


def pass_at_k(samples: Tensor, right: Tensor, k: int) -> Tensor:
    """The probability that one of `k` answers is right, estimated without bias from `samples`.

    `1 - C(samples - right, k) / C(samples, k)`, by the product of Chen et al. 2021 (eq. 1 and
    figure 3), which does not overflow.

    Args:
        samples: answers to each problem, int64 `(n,)`, at least `k`.
        right: right ones among them, int64 `(n,)`.
        k: answers that may be given.

    Returns:
        float64 `(n,)`.
    """
    wrong = (samples - right).double()
    none_right = wrong.new_ones(len(wrong))
    for drawn in range(k):
        none_right = none_right * ((wrong - drawn).clamp(min=0) / (samples - drawn))
    return 1 - none_right
