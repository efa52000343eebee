"""Errors that say what is wrong, where, and what to change.

Codes are `RG` and four digits: 01 construction and types, 02 structure, 03 weights and staleness,
04 resources, 05 nodes and plugins, 06 lowering and run time. `pages/<code>.md` explains each.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources

from rlinf_graph.ir.span import Span


class Severity(StrEnum):
    """How much a diagnostic weighs: an error stops the compiler at the end of its pass."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Diagnostic:
    """One finding about the user's pipeline, cluster, plan or run."""

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    notes: tuple[str, ...] = ()
    help: tuple[str, ...] = ()
    severity: Severity = Severity.ERROR

    def render(self) -> str:
        """The text shown to the user; ends without a line break."""
        lines = [f"{self.severity}[{self.code}]: {self.message}"]
        margin = "  "
        if self.span is not None:
            margin = " " * (len(str(self.span.line)) + 1)
            lines += _excerpt(self.span, self.label, margin)
        lines += [f"{margin}= note: {note}" for note in self.notes]
        lines += [f"{margin}= help: {text}" for text in self.help]
        return "\n".join(lines)


class CompileError(Exception):
    """Every error found by a stage of the compiler, together."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Keep the diagnostics in the order in which they were found."""
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n\n".join(d.render() for d in self.diagnostics))

    def __reduce__(self) -> tuple[type[CompileError], tuple[tuple[Diagnostic, ...]]]:
        """Travel between processes with the diagnostics, not with their text."""
        return CompileError, (self.diagnostics,)


def fail(
    code: str,
    message: str,
    span: Span | None = None,
    *,
    label: str = "",
    notes: tuple[str, ...] = (),
    help: tuple[str, ...] = (),
) -> CompileError:
    """A `CompileError` with a single diagnostic, to be raised where nothing can go on."""
    return CompileError([Diagnostic(code, message, span, label, notes, help)])


def raise_errors(diagnostics: Sequence[Diagnostic]) -> None:
    """Raise one `CompileError` when any of `diagnostics` is an error."""
    if any(d.severity is Severity.ERROR for d in diagnostics):
        raise CompileError(diagnostics)


def suggest(wrong: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for a misspelled name, or the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names) or 'none'}"


def codes() -> list[str]:
    """All codes that have a page, in order."""
    pages = resources.files("rlinf_graph.ir").joinpath("pages")
    return sorted(p.name.removesuffix(".md") for p in pages.iterdir() if p.name.endswith(".md"))


def page(code: str) -> str:
    """The page about `code`.

    Raises:
        CompileError: RG0001, when there is no such code.
    """
    if code not in codes():
        raise fail("RG0001", f"there is no diagnostic {code}", help=(suggest(code, codes()),))
    return resources.files("rlinf_graph.ir").joinpath("pages", f"{code}.md").read_text()


def _excerpt(span: Span, label: str, margin: str) -> list[str]:
    source = span.source
    lines = [f"{margin[:-1]}--> {span}"]
    if not source:
        return lines
    end = span.end_column if span.end_line == span.line else len(source) + 1
    carets = "^" * max(1, end - span.column)
    return [
        *lines,
        f"{margin}|",
        f"{span.line} | {source}",
        f"{margin}| {' ' * (span.column - 1)}{carets} {label}".rstrip(),
    ]
