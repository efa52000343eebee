"""Training: one optimizer step for each minibatch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal, cast

from rlinf_graph.dsl.model import Model
from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir import packed
from rlinf_graph.ir.batch import Batch, TokenBatch
from rlinf_graph.ir.batches import (
    Advantages,
    Examples,
    ProximalLogprobs,
    ReferenceLogprobs,
    Returns,
    Rollouts,
    TokenAdvantages,
    TokenExamples,
    Transitions,
    Values,
    Weights,
)
from rlinf_graph.ir.diagnostic import Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.position import Part, Position, Select
from rlinf_graph.ir.work import Train, Volume
from rlinf_graph.nodes.engine import Engine, TrainBatch
from rlinf_graph.nodes.execution import engine_of, execution
from rlinf_graph.nodes.loss import GRPOLoss, Loss
from rlinf_graph.nodes.optimizer import AdamW

if TYPE_CHECKING:
    from torch import Tensor


def _work(call: Call) -> Train:
    volume = call.volumes["samples"]
    minibatch = call.options["minibatch"] or volume.samples
    steps = volume.samples // minibatch * call.options["epochs"]
    loss: Loss = call.options["loss"]
    head = "value" if loss.reads == "values" else "lm"
    return Train(volume.samples, volume.lengths, call.options["epochs"], steps, head)


def _volume(_call: Call) -> tuple[Volume, ...]:
    return ()


def _check(node: Node, graph: Graph) -> Iterator[Diagnostic]:
    """The loss has the inputs it reads, and the sizes are positive."""
    loss: Loss = node.option("loss")
    given = {edge.param for edge in node.inputs}
    for name, why in loss.needs().items():
        if name not in given:
            yield Diagnostic(
                "RG0102",
                f"{type(loss).__name__} of `{node.name}` needs `{name}`",
                node.span,
                label=f"`{name}` is missing",
                notes=(why,),
            )
    yield from _targets_fit(node, graph, loss)
    for name in ("minibatch", "epochs"):
        value = node.option(name)
        if value is not None and value < 1:
            message = f"`{name}` of `{node.name}` is {value}; it has to be at least 1"
            yield Diagnostic("RG0104", message, node.at(name))


def _targets_fit(node: Node, graph: Graph, loss: Loss) -> Iterator[Diagnostic]:
    """A loss over values learns returns with a value head, one over log-probabilities does not."""
    name, critic = type(loss).__name__, loss.reads == "values"
    targets = node.input("targets")
    if targets is not None and (targets.type == "Returns") is not critic:
        wanted = "Returns" if critic else "Advantages or TokenAdvantages"
        yield Diagnostic(
            "RG0101",
            f"{name} of `{node.name}` takes {wanted} for `targets`, not {targets.type}",
            node.span,
            label=f"`targets` is {targets.type}",
            notes=(f"the {targets.type} comes from `{targets.source}`",),
        )
    head = graph.model(node.models[0].model).head if node.models else ""
    acts = node.inputs[0].type == "Transitions"
    wanted = "value" if critic else "action" if acts else "lm"
    if head and head != wanted:
        yield Diagnostic(
            "RG0105",
            f"{name} of `{node.name}` needs a model with head {wanted}, "
            f"`{node.model}` has head {head}",
            node.span,
        )


@node(
    role=Role.TRAIN,
    unit=Unit.BATCH,
    ports={"model": Port.TRAINED},
    volume=_volume,
    work=_work,
    check=_check,
)
def train(
    model: Model,
    samples: Rollouts | Examples | Transitions,
    targets: Advantages | TokenAdvantages | Returns | None = None,
    *,
    reference: ReferenceLogprobs | None = None,
    proximal: ProximalLogprobs | None = None,
    old_values: Values | None = None,
    loss: Loss = GRPOLoss(),  # noqa: B008  a frozen dataclass is a value
    minibatch: int | None = None,
    epochs: int = 1,
    optimizer: AdamW = AdamW(),  # noqa: B008  a frozen dataclass is a value
    order: Literal["dispatch", "arrival"] = "dispatch",  # noqa: ARG001  read when lowering
) -> Weights:
    """Make one optimizer step for each minibatch of the batch, in dispatch order.

    Args:
        model: its trained port is advanced.
        samples: what to train on.
        targets: advantages for a policy, returns for a critic, nothing for demonstrations.
        reference: of the frozen model, for a KL term.
        proximal: of this model before its first optimizer step; without it the behaviour
            log-probabilities of the rollouts stand in the ratio.
        old_values: of the critic before training, for value clipping.
        loss: sum and weight over the samples; the runtime divides once a minibatch.
        minibatch: samples of one optimizer step; the whole batch by default.
        epochs: passes over the batch; those after the first take it in another order.
        optimizer: and its learning-rate schedule.
        order: `dispatch` is reproducible.
    """
    engine = engine_of("model", model)
    here = execution()
    given: dict[str, Batch | None] = {
        "samples": tokenize_examples(samples, engine) if isinstance(samples, Examples) else samples,
        "targets": targets,
        "reference": reference,
        "proximal": proximal,
        "old_values": old_values,
    }
    count = len(samples)
    minibatches = max(1, count // (minibatch or count)) if count else 0
    select = Select(Part.MINIBATCH, minibatches, permute=True)
    for epoch in range(epochs):
        for index in range(select.count):
            at = Position(here.iteration, rank=0, epoch=epoch, minibatch=index)
            rows = select.rows(at, count, ranks=1, seed=here.seed)
            cut = {name: packed.select(b, rows) for name, b in given.items() if b is not None}
            weight = engine.accumulate([train_batch(cut)], loss, here.metrics)
            engine.optimizer_step(optimizer, weight, here.metrics)
    return Weights(model=model.name or model.path, version=here.iteration + 1)


def tokenize_examples(examples: Examples, engine: Engine) -> TokenExamples:
    """Demonstrations in the tokens of the model that learns from them.

    Args:
        examples: `n` pairs of prompt and completion.
        engine: its tokenizer and chat template are used.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    lengths: list[int] = []
    for prompt, completion in zip(examples.prompts, examples.completions, strict=True):
        asked, answered = engine.tokenize(prompt), engine.tokenize_completion(completion)
        tokens += [*asked, *answered]
        mask += [False] * len(asked) + [True] * len(answered)
        lengths.append(len(asked) + len(answered))
    like = examples.index
    return TokenExamples(
        index=like,
        group=examples.group,
        lengths=like.new_tensor(lengths),
        tokens=like.new_tensor(tokens),
        mask=like.new_tensor(mask).bool(),
    )


def train_batch(given: Mapping[str, Batch]) -> TrainBatch:
    """What a loss reads, from `train`'s inputs by parameter, demonstrations tokenized already.

    Per-sample advantages are spread over the tokens.
    """
    samples = cast("Rollouts | TokenExamples | Transitions", given["samples"])
    targets = given.get("targets")
    old = cast("Values | None", given.get("old_values"))
    return TrainBatch(
        samples=samples,
        advantages=_over_tokens(targets, samples) if not isinstance(targets, Returns) else None,
        returns=targets.values if isinstance(targets, Returns) else None,
        old_values=packed.drop_last(old) if old is not None else None,
        reference=_values(given.get("reference")),
        proximal=_values(given.get("proximal")),
    )


def _over_tokens(targets: Batch | None, samples: TokenBatch) -> Tensor | None:
    if isinstance(targets, Advantages):
        return targets.values.repeat_interleave(samples.lengths)
    return _values(targets)


def _values(batch: Batch | None) -> Tensor | None:
    return None if batch is None else cast("TokenAdvantages", batch).values
