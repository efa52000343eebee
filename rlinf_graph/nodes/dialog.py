"""Dialogs of several turns: begin them, let the policy speak, grade how they ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlinf_graph.dsl.model import Model
from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir.batches import Dialogs, Prompts, Rollouts
from rlinf_graph.ir.diagnostic import Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.work import Generate, HostWork, Lengths, Volume
from rlinf_graph.nodes.engine import Sampling
from rlinf_graph.nodes.execution import engine_of, execution, metric
from rlinf_graph.nodes.lengths import Declared, check_lengths, response_lengths
from rlinf_graph.nodes.reward import SECONDS_PER_ANSWER, columns_fit
from rlinf_graph.nodes.verifier import Verifier, rewards_of


def _begun(call: Call) -> tuple[Volume, ...]:
    prompts, samples = call.first, call.options["samples"]
    return (Volume(prompts.samples * samples, prompts.lengths, prompts.lengths.mean, samples),)


def at_least(node: Node, least: Mapping[str, float]) -> Iterator[Diagnostic]:
    """Options that have a smallest value have at least that."""
    for name, bound in least.items():
        if node.option(name) < bound:
            value = node.option(name)
            message = f"`{name}` of `{node.name}` is {value}; it has to be at least {bound:g}"
            yield Diagnostic("RG0104", message, node.at(name))


def _open_check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    return at_least(node, {"samples": 1})


@node(unit=Unit.SAMPLE, volume=_begun, check=_open_check)
def open_dialogs(prompts: Prompts, *, samples: int = 1) -> Dialogs:
    """Begin dialogs; what `reply` reads first is the prompt, in its own tokens.

    Args:
        prompts: `n` of them.
        samples: dialogs with each prompt; the result has `n * samples`, those of a prompt together,
            in which nothing has been said.
    """
    index = prompts.index
    count = len(prompts) * samples
    place = index.new_ones(count).cumsum(0) - 1
    group = index.repeat_interleave(samples)
    nothing, no = index.new_zeros(0), index.new_zeros(count).bool()
    return Dialogs(
        index=group * samples + place % samples,
        group=group,
        lengths=index.new_zeros(count),
        tokens=nothing,
        mask=nothing.bool(),
        logprobs=nothing.double(),
        versions=nothing,
        prompt_lengths=index.new_zeros(count),
        finished=no,
        temperature=index.new_ones(count).double(),
        prompts=[prompt for prompt in prompts.prompts for _ in range(samples)],
        responses=[""] * count,
        columns=[columns for columns in prompts.columns for _ in range(samples)],
        done=no,
        turns=index.new_zeros(count),
        answers=[""] * count,
    )


def _reply_volume(call: Call) -> tuple[Volume, ...]:
    dialogs = call.first
    turn = response_lengths(call.options["max_tokens"], call.options["lengths"])
    whole = Lengths(tuple(dialogs.lengths.mean + q for q in turn.quantiles), turn.origin)
    return (Volume(dialogs.samples, whole, dialogs.prompt_tokens, dialogs.group),)


def _reply_work(call: Call) -> Generate:
    dialogs = call.first
    turn = response_lengths(call.options["max_tokens"], call.options["lengths"])
    return Generate(dialogs.samples, dialogs.lengths.mean, turn)


def _reply_check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    """The sampling options are in range."""
    yield from at_least(node, {"max_tokens": 1, "temperature": 0.0})
    if "" in node.option("stop"):
        message = f"an empty text in `stop` of `{node.name}` would end every turn at once"
        yield Diagnostic("RG0104", message, node.at("stop"))
    if not 0 < node.option("top_p") <= 1:
        message = f"`top_p` of `{node.name}` is {node.option('top_p')}; it lies in (0, 1]"
        yield Diagnostic("RG0104", message, node.at("top_p"))
    yield from check_lengths(node)


@node(
    unit=Unit.SAMPLE,
    ports={"policy": Port.SERVED},
    heads={"policy": ("lm",)},
    volume=_reply_volume,
    work=_reply_work,
    check=_reply_check,
)
def reply(
    policy: Model,
    dialogs: Dialogs,
    *,
    max_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: tuple[str, ...] = (),
    lengths: Declared = None,  # noqa: ARG001  read when planning
) -> Dialogs:
    """Let the policy speak once more in each dialog that is not done.

    It reads the prompt first, later what a tool answered. Each turn reads the whole dialog again:
    no cache is kept between turns. What it reads is not its own: `mask` is false there.

    Args:
        policy: its served port is read.
        dialogs: `n` of them.
        max_tokens: at most that many tokens a turn.
        temperature, top_p: as in `rollout`; give all turns of a dialog the same temperature.
        stop: texts that end a turn and stay in it, besides the tokenizer's end token.
        lengths: what to plan with: tokens of a turn, as in `rollout`.
    """
    sampling = Sampling(1, max_tokens, temperature, top_p, tuple(stop))
    here = execution()
    made = engine_of("policy", policy).reply(
        dialogs, sampling, here.key, here.versions.get("policy", 0)
    )
    spoken = made.mask.sum() - dialogs.mask.sum()
    metric("dialog/turn_tokens", float(spoken) / max(1, len(made)), weight=float(len(made)))
    metric("dialog/tokens_max", made.lengths, reduce="max")
    metric("dialog/cut_off", 1.0 - made.finished.double())
    return made


def _grade_check(node: Node, graph: Graph) -> Iterator[Diagnostic]:
    return columns_fit(node, graph, "rollouts")


def _grade_work(call: Call) -> HostWork:
    return HostWork(call.first.samples, SECONDS_PER_ANSWER, "declared default")


def _no_volume(_call: Call) -> tuple[Volume, ...]:
    return ()


@node(role=Role.EVALUATE, unit=Unit.SAMPLE, volume=_no_volume, work=_grade_work, check=_grade_check)
def grade(rollouts: Rollouts, function: Verifier, *, name: str = "grade") -> None:
    """Emit how good answers are that other nodes made, such as whole dialogs.

    What makes them runs in every iteration: let a pipeline of its own hold the exam.

    Args:
        rollouts: `n` of them.
        function: as in `verify`.
        name: of the metrics: `{name}/score`, the mean of the function; `{name}/cut_off`.

    Raises:
        CompileError: RG0506 and RG0507, as in `verify`.
    """
    metric(f"{name}/score", rollouts.logprobs.new_tensor(rewards_of(rollouts, function)))
    metric(f"{name}/cut_off", 1.0 - rollouts.finished.double())
