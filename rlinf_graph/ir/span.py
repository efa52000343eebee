"""Where in the user's source something was written."""

from __future__ import annotations

import ast
import linecache
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType


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
        return shown_path(self.file)

    @property
    def source(self) -> str:
        """The first line of the range as it stands in the file, without its line end."""
        return linecache.getline(self.file, self.line).rstrip("\n")

    def argument(self, name: str, parameters: Sequence[str] = ()) -> Span:
        """The value given for a parameter of the call in this range; the range where it is not.

        Args:
            name: of the parameter.
            parameters: the names of all, in the order in which a call gives them.
        """
        call = self._call()
        if call is None:
            return self
        for keyword in call.keywords:
            if keyword.arg == name:
                return self._of_expression(keyword.value)
        given = {k.arg for k in call.keywords}
        place = [p for p in parameters if p not in given]
        plain = not any(isinstance(argument, ast.Starred) for argument in call.args)
        if plain and name in place and place.index(name) < len(call.args):
            return self._of_expression(call.args[place.index(name)])
        return self

    def _call(self) -> ast.Call | None:
        """The call that fills this range, found by reading the file again."""
        try:
            tree = ast.parse("".join(linecache.getlines(self.file)))
        except (SyntaxError, ValueError):
            return None
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        return next((call for call in calls if self._of_expression(call) == self), None)

    def _of_expression(self, node: ast.expr) -> Span:
        end_line, end = node.end_lineno or node.lineno, node.end_col_offset
        return Span(
            file=self.file,
            line=node.lineno,
            column=_display_column(self.file, node.lineno, node.col_offset),
            end_line=end_line,
            end_column=_display_column(self.file, end_line, end),
        )

    @classmethod
    def of_frame(cls, frame: FrameType) -> Span:
        """The expression that `frame` is evaluating now."""
        return cls._of_instruction(frame.f_code, frame.f_lasti, frame.f_lineno)

    @classmethod
    def of_traceback(cls, traceback: TracebackType) -> Span:
        """The expression that raised, in the frame of this entry of a traceback."""
        code = traceback.tb_frame.f_code
        return cls._of_instruction(code, traceback.tb_lasti, traceback.tb_lineno)

    @classmethod
    def _of_instruction(cls, code: CodeType, instruction: int, known_line: int) -> Span:
        positions = list(code.co_positions())[instruction // 2]
        line, end_line, column, end_column = positions
        first = line or known_line
        return cls(
            file=code.co_filename,
            line=first,
            column=_display_column(code.co_filename, first, column),
            end_line=end_line or first,
            end_column=_display_column(code.co_filename, end_line or first, end_column),
        )


def caller(levels: int = 1) -> FrameType:
    """The frame that many levels above the function that asks."""
    return sys._getframe(levels + 1)  # pyright: ignore[reportPrivateUsage]  documented, if underscored


def _display_column(file: str, line: int, byte_column: int | None) -> int:
    """`co_positions` counts UTF-8 bytes from 0; people count characters from 1."""
    if byte_column is None:
        return 1
    text = linecache.getline(file, line).encode()[:byte_column]
    return len(text.decode(errors="replace")) + 1


def shown_path(file: str) -> str:
    """A path relative to the working folder where it lies below it, as it is elsewhere."""
    relative = os.path.relpath(file) if os.path.isabs(file) else file
    return file if relative.startswith("..") else relative
