"""What planning can tell of a data source: how much it gives, and whether it can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlinf_graph.dsl.node import Call
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.work import HostWork, Lengths, Volume
from rlinf_graph.nodes import rows
from rlinf_graph.nodes.columns import (
    COMPLETION,
    PROMPT,
    as_prompt,
    cell,
    demonstration,
    demonstration_columns,
    find_column,
    truth_column,
)
from rlinf_graph.nodes.rows import Row

ASSUMED_ROWS = 1000
ASSUMED_TOKENS = 256
CHARACTERS_PER_TOKEN = 4
SECONDS_PER_ROW = 20e-6
"""Of one core, to read a row; an assumption."""


def dataset_volume(call: Call) -> tuple[Volume, ...]:
    """As many prompts as the batch has, or the whole data set."""
    samples, remark = _samples(call.options)
    cells = _first_cells(call.options, call.options["prompt"], PROMPT)
    mean, origin = _tokens(call.options["prompt_tokens"], cells)
    return (Volume(samples, Lengths.fixed(mean, origin + remark), mean),)


def examples_volume(call: Call) -> tuple[Volume, ...]:
    """As `dataset_volume`, with completions behind the prompts."""
    options = call.options
    samples, remark = _samples(options)
    prompts = _first_cells(options, options["prompt"], PROMPT)
    asked, origin = _tokens(options["prompt_tokens"], prompts)
    completions = _first_cells(options, options["completion"], COMPLETION)
    if completions is None and prompts is not None:
        completions = [""]  # the conversation's length counts its last message already
    answered, other = _tokens(options["completion_tokens"], completions)
    origins = origin if origin == other else f"{origin}; {other}"
    return (Volume(samples, Lengths.fixed(asked + answered, origins + remark), asked),)


def work(call: Call) -> HostWork:
    """Reading rows."""
    return HostWork(_samples(call.options)[0], SECONDS_PER_ROW, "declared default")


def _source_check(node: Node) -> Iterator[Diagnostic]:
    """The data can be read, as far as planning can tell, and gives a batch."""
    options = dict(node.options)
    for name in ("batch", "size", "prompt_tokens"):
        if options[name] is not None and options[name] < 1:
            message = f"`{name}` of `{node.name}` is {options[name]}; it has to be at least 1"
            yield Diagnostic("RG0104", message, node.span)
    total, batch = _rows_known(options), options["batch"]
    if total is not None and batch is not None and total < batch:
        yield too_small(options["path"], total, batch, node)


def too_small(path: str, total: int, batch: int, node: Node | None = None) -> Diagnostic:
    """A data set with fewer rows than a batch; `node` is where it was written, if known."""
    return Diagnostic(
        "RG0505",
        f"`{path}` has {total} rows, fewer than a batch of {batch}",
        node.span if node else None,
        help=(f"batch={total} or less",),
    )


def _at(node: Node, look: Callable[[], object]) -> Iterator[Diagnostic]:
    """What `look` raises, reported where the node was written."""
    try:
        look()
    except CompileError as error:
        for found in error.diagnostics:
            yield replace(found, span=node.span)


def dataset_check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    """A local file has the columns, and enough rows; what is wanted is limited by a batch."""
    path = node.option("path")

    def look() -> None:
        _, names, first = rows.look(path, node.option("split"))
        prompt = find_column(path, names, node.option("prompt"), PROMPT, "prompt")
        truth_column(path, names, node.option("truth"))
        as_prompt(path, cell(path, first[0], prompt), chat=node.option("chat"))

    if rows.is_file(path):
        yield from _at(node, look)
    yield from _source_check(node)
    if node.input("wanted") is not None and node.option("batch") is None:
        message = f"`{node.name}` gives what is wanted, and has no limit"
        yield Diagnostic("RG0104", message, node.span, help=("batch=64: in a round, at most",))
    if node.option("tries") < 1:
        message = f"`tries` of `{node.name}` is {node.option('tries')}; it has to be at least 1"
        yield Diagnostic("RG0104", message, node.at("tries"))


def examples_check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    """As `dataset_check`, with completions."""
    path = node.option("path")

    def look() -> None:
        _, names, first = rows.look(path, node.option("split"))
        prompt, completion = demonstration_columns(
            path, names, node.option("prompt"), node.option("completion")
        )
        demonstration(path, first[0], prompt, completion, chat=node.option("chat"))

    if rows.is_file(path):
        yield from _at(node, look)
    yield from _source_check(node)


def known_columns(graph: Graph, node: Node, param: str) -> set[str] | None:
    """The columns of the samples that arrive at `param`; None where planning cannot look.

    It can where they are answers to the prompts of a local file.
    """
    edge = node.input(param)
    source = graph.node(edge.source.node) if edge else None
    if source is not None and source.type == "rollout":
        return known_columns(graph, source, "prompts")
    if source is None or source.type != "dataset":
        return None
    options = dict(source.options)
    looked = _looked(options)
    if looked is None:
        return None
    names, path = looked[1], options["path"]
    try:
        prompt = find_column(path, names, options["prompt"], PROMPT, "prompt")
        truth = truth_column(path, names, options["truth"])
    except CompileError:
        return None  # its own check reports it
    kept = {name for name in names if name not in (prompt, truth)}
    return kept | ({"truth"} if truth else set())


def _looked(options: Mapping[str, Any]) -> tuple[int, tuple[str, ...], list[Row]] | None:
    """Rows, columns and first rows of a local file; None for the hub, or where it has errors."""
    if not rows.is_file(options["path"]):
        return None
    try:
        return rows.look(options["path"], options["split"])
    except CompileError:
        return None


def _samples(options: Mapping[str, Any]) -> tuple[int, str]:
    """Samples of an iteration, and a remark where their number is assumed."""
    if options["batch"] is not None:
        return options["batch"], ""
    total = _rows_known(options)
    return (total, "") if total is not None else (ASSUMED_ROWS, f"; {ASSUMED_ROWS} rows assumed")


def _rows_known(options: Mapping[str, Any]) -> int | None:
    """Rows of the data set, as far as planning can know: declared, counted or published."""
    if options["size"] is not None:
        return options["size"]
    looked = _looked(options)
    return looked[0] if looked else rows.known(options["path"]).get(options["split"])


def _tokens(declared: int | None, texts: Sequence[Any] | None) -> tuple[float, str]:
    """Mean tokens of a text, and where the figure comes from."""
    if declared is not None:
        return declared, "declared"
    if not texts:
        return ASSUMED_TOKENS, "declared default"
    characters = sum(_characters(text) for text in texts) / len(texts)
    return characters / CHARACTERS_PER_TOKEN, "estimated: characters / 4"


def _characters(cell: Any) -> int:
    """Of a text, or of all messages of a chat."""
    if isinstance(cell, list):
        return sum(len(str(m.get("content", ""))) for m in cell if isinstance(m, dict))
    return len(str(cell))


def _first_cells(
    options: Mapping[str, Any], named: str | None, usual: Sequence[str]
) -> list[Any] | None:
    looked = _looked(options)
    if looked is None:
        return None
    names = [name for name in ([named] if named else usual) if name in looked[1]]
    return [row.get(names[0], "") for row in looked[2]] if names else None
