"""Where prompts and demonstrations come from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlinf_graph.dsl.node import node
from rlinf_graph.ir.batches import Demand, Examples, Prompts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.node_type import Place, Role, Unit
from rlinf_graph.nodes import rows, source_facts
from rlinf_graph.nodes.columns import (
    PROMPT,
    as_prompt,
    cell,
    demonstration,
    demonstration_columns,
    find_column,
    truth_column,
)
from rlinf_graph.nodes.cursor import advance
from rlinf_graph.nodes.execution import Execution, execution
from rlinf_graph.nodes.rows import Row, Rows

if TYPE_CHECKING:
    from torch import Tensor


def _next(
    path: str,
    split: str,
    config: str | None,
    batch: int | None,
    shuffle: bool,
    wanted: int | None = None,
) -> tuple[Rows, list[Row]]:
    """The rows of this iteration, at most as many as are wanted; the source's register moves on."""
    data, here = rows.read(path, split, config), execution()
    if data.count < (batch or 1):
        raise CompileError([source_facts.too_small(path, data.count, batch or 1)])
    if wanted is not None:
        batch = min(wanted, batch or data.count)
        if batch == 0:
            return data, []
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


def _places(count: int, batch: int | None = None) -> Tensor:
    """Their places in the batch; fewer samples are spread over it, for all ranks to have some."""
    import torch  # a source makes tensors out of nothing

    return torch.arange(count) * max(count, batch or 0) // max(count, 1)


@node(
    role=Role.SOURCE,
    place=Place.HOST,
    unit=Unit.SAMPLE,
    volume=source_facts.dataset_volume,
    work=source_facts.work,
    check=source_facts.dataset_check,
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
    wanted: Demand | None = None,
    tries: float = 1.0,
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
        wanted: give at most as many prompts as groups are wanted, none where none are: then the
            source stays where it is. `refill` makes it.
        tries: prompts for each group that is wanted. More than one wastes some, and saves rounds
            where many groups are dropped.

    Its state (epoch, cursor, seed) moves on once an iteration and is part of a checkpoint.

    Raises:
        CompileError: RG0505, where the data cannot be read, or is not what is asked for.
    """
    asking = None if wanted is None else math.ceil(int(wanted.groups.sum()) * tries)
    data, taken = _next(path, split, config, batch, shuffle, asking)
    asked = find_column(path, data.columns, prompt, PROMPT, "prompt")
    expected = truth_column(path, data.columns, truth)
    columns = [{k: v for k, v in row.items() if k not in (asked, expected)} for row in taken]
    if expected is not None:
        for row, kept in zip(taken, columns, strict=True):
            kept["truth"] = cell(path, row, expected)
    index = _places(len(taken), batch)
    prompts = [as_prompt(path, cell(path, row, asked), chat=chat) for row in taken]
    return Prompts(index=index, group=index, prompts=prompts, columns=columns)


@node(
    role=Role.SOURCE,
    place=Place.HOST,
    unit=Unit.SAMPLE,
    volume=source_facts.examples_volume,
    work=source_facts.work,
    check=source_facts.examples_check,
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
    asked, answered = demonstration_columns(path, data.columns, prompt, completion)
    pairs = [demonstration(path, row, asked, answered, chat=chat) for row in taken]
    index = _places(len(taken))
    return Examples(
        index=index,
        group=index,
        prompts=[pair[0] for pair in pairs],
        completions=[pair[1] for pair in pairs],
        columns=[{k: v for k, v in row.items() if k not in (asked, answered)} for row in taken],
    )
