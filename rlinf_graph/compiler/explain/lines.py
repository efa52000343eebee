"""Lines of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

BOLD, RED, YELLOW, RESET = "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
INDENT = 12


def paragraph(head: str, text: str, width: int, indent: int = INDENT) -> Iterator[str]:
    """Text behind a head, wrapped under its own beginning."""
    first = head.ljust(indent) if len(head) < indent else head + " "
    yield from textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False
    )


def wrapped(items: Sequence[str], width: int) -> Iterator[str]:
    """Items side by side, none of them broken."""
    line = ""
    for item in items:
        if line and len(line) + 2 + len(item) >= width:
            yield f" {line}"
            line = ""
        line = f"{line}  {item}" if line else item
    if line:
        yield f" {line}"


def colored(text: str, tone: str, color: bool) -> str:
    """With a tone, where colors are wanted."""
    return f"{tone}{text}{RESET}" if color else text
