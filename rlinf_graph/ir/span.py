"""Where in the user's source something was written."""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True, slots=True)
class Span:
    """A range of source text. Lines and columns count from 1; `end_column` is exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        """As compilers print it: `file:line:column`, the file relative to the working folder."""
        return f"{self.shown_file}:{self.line}:{self.column}"

    @property
    def shown_file(self) -> str:
        """The file, relative to the working folder where it lies below it."""
        relative = os.path.relpath(self.file) if os.path.isabs(self.file) else self.file
        return self.file if relative.startswith("..") else relative

    @property
    def source(self) -> str:
        """The first line of the range as it stands in the file, without its line end."""
        return linecache.getline(self.file, self.line).rstrip("\n")

    @classmethod
    def of_frame(cls, frame: FrameType) -> Span:
        """The expression that `frame` is evaluating now."""
        positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
        line, end_line, column, end_column = positions
        first = line or frame.f_lineno
        return cls(
            file=frame.f_code.co_filename,
            line=first,
            column=_display_column(frame.f_code.co_filename, first, column),
            end_line=end_line or first,
            end_column=_display_column(frame.f_code.co_filename, end_line or first, end_column),
        )


def _display_column(file: str, line: int, byte_column: int | None) -> int:
    """`co_positions` counts UTF-8 bytes from 0; people count characters from 1."""
    if byte_column is None:
        return 1
    text = linecache.getline(file, line).encode()[:byte_column]
    return len(text.decode(errors="replace")) + 1
