"""Which column of a row is what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlinf_graph.ir.batches import Prompt
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.nodes.rows import Row

PROMPT = ("prompt", "question", "problem", "messages", "input", "instruction")
TRUTH = ("truth", "answer", "solution", "label", "ground_truth")
COMPLETION = ("completion", "response", "output", "answer", "solution", "target")
"""Columns that are taken where none is named: the first that is there."""


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


def truth_column(path: str, names: Sequence[str], named: str | None) -> str | None:
    """The column of the expected answer; None where there is none and none was named."""
    if named is None and not {*TRUTH} & {*names}:
        return None
    return find_column(path, names, named, TRUTH, "truth")


def cell(path: str, row: Row, name: str) -> Any:
    """What a row holds in a column.

    Raises:
        CompileError: RG0505, for a row without it, which JSON allows.
    """
    if name not in row:
        raise fail(
            "RG0505", f"a row of `{path}` has no `{name}`", notes=(f"the row: {row!r:.200}",)
        )
    return row[name]


def demonstration_columns(
    path: str, columns: Sequence[str], prompt: str | None, completion: str | None
) -> tuple[str, str | None]:
    """The columns of prompt and completion; no second one for whole conversations."""
    asked = find_column(path, columns, prompt, PROMPT, "prompt")
    if completion is None and not {*COMPLETION} & {*columns} and asked == "messages":
        return asked, None
    return asked, find_column(path, columns, completion, COMPLETION, "completion")


def demonstration(
    path: str, row: Row, prompt: str, completion: str | None, *, chat: bool
) -> tuple[Prompt, str]:
    """A row as prompt and completion; of a conversation the last message is the completion."""
    asked = as_prompt(path, cell(path, row, prompt), chat=chat)
    if completion is not None:
        return asked, str(cell(path, row, completion))
    if isinstance(asked, str) or not asked or asked[-1]["role"] != "assistant":
        raise fail(
            "RG0505",
            f"a conversation of `{path}` does not end with the assistant's message",
            help=("the last message is what is learned",),
        )
    return asked[:-1], asked[-1]["content"]
