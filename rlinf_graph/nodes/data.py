"""Where prompts and demonstrations come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlinf_graph.dsl.node import Call, node
from rlinf_graph.ir.batches import Examples, Prompt, Prompts
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic, fail
from rlinf_graph.ir.graph import Graph, Node
from rlinf_graph.ir.node_type import Place, Role, Unit
from rlinf_graph.ir.work import HostWork, Lengths, Volume
from rlinf_graph.nodes import rows
from rlinf_graph.nodes.cursor import advance
from rlinf_graph.nodes.execution import Execution, execution
from rlinf_graph.nodes.rows import Row, Rows

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = ("prompt", "question", "problem", "messages", "input", "instruction")
TRUTH = ("truth", "answer", "solution", "label", "ground_truth")
COMPLETION = ("completion", "response", "output", "answer", "solution", "target")
"""Columns that are taken where none is named: the first that is there."""

ASSUMED_ROWS = 1000
ASSUMED_TOKENS = 256
CHARACTERS_PER_TOKEN = 4
SECONDS_PER_ROW = 20e-6
"""Of one core, to read a row; an assumption."""


def find_column(
    path: str, columns: Sequence[str], named: str | None, usual: Sequence[str], option: str
) -> str:
    """The column that holds the prompt, the truth or the completion, whichever `option` says.

    Raises:
        CompileError: RG0505, naming the columns that are there.
    """
    for name in [named] if named else usual:
        if name in columns:
            return name
    message = f"`{path}` has no column `{named}`" if named else f"`{path}`: which is the {option}?"
    looked = () if named else (f"looked for: {', '.join(usual)}",)
    raise fail(
        "RG0505",
        message,
        notes=(f"its columns: {', '.join(columns)}", *looked),
        help=(f'{option}="{columns[0]}", or another of its columns',),
    )


def as_prompt(path: str, value: Any, *, chat: bool) -> Prompt:
    """A cell as a prompt: text, or chat messages.

    Raises:
        CompileError: RG0505, for anything else.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if chat else value
    if isinstance(value, list) and all(
        isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value
    ):
        return value
    raise fail(
        "RG0505",
        f"a prompt of `{path}` is {str(value)[:80]!r} ({type(value).__name__})",
        help=("a prompt is text, or a list of messages with `role` and `content`",),
    )


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
    except CompileError:
        return None  # its own check reports it
    truth = _truth_column(path, names, options["truth"]) if _has_truth(names, options) else None
    kept = {name for name in names if name not in (prompt, truth)}
    return kept | ({"truth"} if truth else set())


def _has_truth(names: Sequence[str], options: Mapping[str, Any]) -> bool:
    return options["truth"] in names if options["truth"] else bool({*TRUTH} & {*names})


def _truth_column(path: str, names: Sequence[str], named: str | None) -> str | None:
    """The column of the expected answer; None where there is none and none was named."""
    if named is None and not {*TRUTH} & {*names}:
        return None
    return find_column(path, names, named, TRUTH, "truth")


def _cell(path: str, row: Row, name: str) -> Any:
    if name not in row:
        raise fail(
            "RG0505", f"a row of `{path}` has no `{name}`", notes=(f"the row: {row!r:.200}",)
        )
    return row[name]


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


def _dataset_volume(call: Call) -> tuple[Volume, ...]:
    samples, remark = _samples(call.options)
    cells = _first_cells(call.options, call.options["prompt"], PROMPT)
    mean, origin = _tokens(call.options["prompt_tokens"], cells)
    return (Volume(samples, Lengths.fixed(mean, origin + remark), mean),)


def _examples_volume(call: Call) -> tuple[Volume, ...]:
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


def _work(call: Call) -> HostWork:
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
        yield _too_small(options["path"], total, batch, node)


def _too_small(path: str, total: int, batch: int, node: Node | None = None) -> Diagnostic:
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


def _dataset_check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    path = node.option("path")

    def look() -> None:
        _, names, first = rows.look(path, node.option("split"))
        prompt = find_column(path, names, node.option("prompt"), PROMPT, "prompt")
        _truth_column(path, names, node.option("truth"))
        as_prompt(path, _cell(path, first[0], prompt), chat=node.option("chat"))

    if rows.is_file(path):
        yield from _at(node, look)
    yield from _source_check(node)


def _examples_check(node: Node, _graph: Graph) -> Iterator[Diagnostic]:
    path = node.option("path")

    def look() -> None:
        _, names, first = rows.look(path, node.option("split"))
        prompt, completion = _demonstration_columns(
            path, names, node.option("prompt"), node.option("completion")
        )
        _demonstration(path, first[0], prompt, completion, chat=node.option("chat"))

    if rows.is_file(path):
        yield from _at(node, look)
    yield from _source_check(node)


def _next(
    path: str, split: str, config: str | None, batch: int | None, shuffle: bool
) -> tuple[Rows, list[Row]]:
    """The rows of this iteration; the source's register moves on."""
    data, here = rows.read(path, split, config), execution()
    if data.count < (batch or 1):
        raise CompileError([_too_small(path, data.count, batch or 1)])
    direct = here.node == Execution.node
    taken = advance(
        here.registers,
        f"{path} {split}" if direct else here.node,
        count=data.count,
        batch=batch,
        shuffle=shuffle,
        seed=here.seed,
    )
    return data, data.take(taken)


def _places(count: int) -> Tensor:
    import torch  # a source makes tensors out of nothing

    return torch.arange(count)


@node(
    role=Role.SOURCE,
    place=Place.HOST,
    unit=Unit.SAMPLE,
    volume=_dataset_volume,
    work=_work,
    check=_dataset_check,
)
def dataset(
    path: str,
    *,
    batch: int | None = None,
    split: str = "train",
    config: str | None = None,
    prompt: str | None = None,
    truth: str | None = None,
    chat: bool = False,
    shuffle: bool = True,
    size: int | None = None,  # noqa: ARG001  read when planning
    prompt_tokens: int | None = None,  # noqa: ARG001  read when planning
) -> Prompts:
    """Take the next prompts of a data set.

    Args:
        path: a .jsonl, .json or .parquet file, a folder, or a name on the Hugging Face hub.
        batch: prompts of an iteration. A batch that reaches the end of the data goes on from its
            start. None: all of them, each time, in file order.
        split: of a folder or of the hub's data set.
        config: of the hub's data set, where it has several.
        prompt: the column with the prompt, text or chat messages; by default the first of prompt,
            question, problem, messages, input, instruction.
        truth: the column with the expected answer, which becomes the column `truth`; by default
            the first of truth, answer, solution, label, ground_truth, if there is one.
        chat: make a user's message of a prompt that is text.
        shuffle: give each epoch in another order, which the run's seed decides.
        size: what to plan with: rows of a data set that planning cannot count; 1,000 are assumed.
        prompt_tokens: what to plan with: tokens of a prompt. Otherwise a quarter of the characters
            of a local file's first rows, or 256.

    Its state (epoch, cursor, seed) moves on once an iteration and is part of a checkpoint.

    Raises:
        CompileError: RG0505, where the data cannot be read, or is not what is asked for.
    """
    data, taken = _next(path, split, config, batch, shuffle)
    asked = find_column(path, data.columns, prompt, PROMPT, "prompt")
    expected = _truth_column(path, data.columns, truth)
    columns = [{k: v for k, v in row.items() if k not in (asked, expected)} for row in taken]
    if expected is not None:
        for row, kept in zip(taken, columns, strict=True):
            kept["truth"] = _cell(path, row, expected)
    index = _places(len(taken))
    prompts = [as_prompt(path, _cell(path, row, asked), chat=chat) for row in taken]
    return Prompts(index=index, group=index, prompts=prompts, columns=columns)


def _demonstration_columns(
    path: str, columns: Sequence[str], prompt: str | None, completion: str | None
) -> tuple[str, str | None]:
    """The columns of prompt and completion; no second one for whole conversations."""
    asked = find_column(path, columns, prompt, PROMPT, "prompt")
    if completion is None and not {*COMPLETION} & {*columns} and asked == "messages":
        return asked, None
    return asked, find_column(path, columns, completion, COMPLETION, "completion")


def _demonstration(
    path: str, row: Row, prompt: str, completion: str | None, *, chat: bool
) -> tuple[Prompt, str]:
    """A row as prompt and completion; of a conversation the last message is the completion."""
    asked = as_prompt(path, _cell(path, row, prompt), chat=chat)
    if completion is not None:
        return asked, str(_cell(path, row, completion))
    if isinstance(asked, str) or not asked or asked[-1]["role"] != "assistant":
        raise fail(
            "RG0505",
            f"a conversation of `{path}` does not end with the assistant's message",
            help=("the last message is what is learned",),
        )
    return asked[:-1], asked[-1]["content"]


@node(
    role=Role.SOURCE,
    place=Place.HOST,
    unit=Unit.SAMPLE,
    volume=_examples_volume,
    work=_work,
    check=_examples_check,
)
def examples(
    path: str,
    *,
    batch: int | None = None,
    split: str = "train",
    config: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    chat: bool = False,
    shuffle: bool = True,
    size: int | None = None,  # noqa: ARG001  read when planning
    prompt_tokens: int | None = None,  # noqa: ARG001  read when planning
    completion_tokens: int | None = None,  # noqa: ARG001  read when planning
) -> Examples:
    """Take the next demonstrations of a data set.

    Args:
        path, batch, split, config, chat, shuffle, size, prompt_tokens: as in `dataset`.
        prompt: the column with the prompt, as in `dataset`.
        completion: the column with what a model should answer; by default the first of completion,
            response, output, answer, solution, target. Where there is none, the last message of
            the conversations in `messages`.
        completion_tokens: what to plan with: tokens of a completion.

    Raises:
        CompileError: RG0505, where the data cannot be read, or is not what is asked for.
    """
    data, taken = _next(path, split, config, batch, shuffle)
    asked, answered = _demonstration_columns(path, data.columns, prompt, completion)
    pairs = [_demonstration(path, row, asked, answered, chat=chat) for row in taken]
    index = _places(len(taken))
    return Examples(
        index=index,
        group=index,
        prompts=[pair[0] for pair in pairs],
        completions=[pair[1] for pair in pairs],
        columns=[{k: v for k, v in row.items() if k not in (asked, answered)} for row in taken],
    )
