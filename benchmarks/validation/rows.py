"""Published measurements as rows of text, and which of them can be predicted."""

from __future__ import annotations

import csv
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlinf_graph.compiler.cost.lookup import known_models
from rlinf_graph.compiler.cost.shapes import ModelShape

DATA = Path(__file__).parents[1] / "data"
CHECK = re.compile(r"\bCHECK\b")


@dataclass(frozen=True)
class Row:
    """A line of a file of measurements.

    Attributes:
        file, line: where it stands; the header is line 1.
        fields: text by column; empty where nothing was published.
    """

    file: str
    line: int
    fields: Mapping[str, str]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.file}:{self.line}"

    def text(self, column: str) -> str:
        """What stands in a column; empty where it has no such column."""
        return (self.fields.get(column) or "").strip()

    def number(self, column: str) -> float | None:
        """A column's number, with or without commas between thousands; None where it has none."""
        try:
            made = float(self.text(column).replace(",", ""))
        except ValueError:
            return None
        return made if math.isfinite(made) else None

    def whole(self, column: str, default: int = 1) -> int:
        """A column's whole number, such as a degree of parallelism."""
        return int(self.number(column) or default)

    @property
    def doubtful(self) -> bool:
        """Whether its notes mark it as one that disagrees with itself."""
        return bool(CHECK.search(self.text("notes")))


@dataclass(frozen=True)
class LeftOut:
    """A row that is not predicted, and why."""

    row: Row
    reason: str


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; columns may be missing, be more, and stand in any order."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.DictReader(file, restkey="more", skipinitialspace=True)
        return [Row(path.name, lines.line_num, fields) for fields in lines if any(fields.values())]


@cache
def spellings(table: str) -> dict[str, str]:
    """The names of the catalogue by what publications write, from a table of the aliases."""
    groups = tomllib.loads((DATA / "model_aliases.toml").read_text("utf-8"))[table]
    return {plain(text): name for name, others in groups.items() for text in (name, *others)}


def plain(name: str) -> str:
    """Letters and digits of a name, without the organisation."""
    return re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])


@cache
def _catalogue() -> dict[str, str]:
    """The first hub name of each shape by the plain names of all that have it."""
    first: dict[int, str] = {}
    known = known_models()
    return {plain(name): first.setdefault(id(shape), name) for name, shape in known.items()}


def canonical(spelled: str) -> str:
    """One name for all spellings and fine-tuned versions of a model."""
    name = plain(spelled)
    return spellings("models").get(name) or _catalogue().get(name) or spelled.strip()


def shape_named(spelled: str) -> ModelShape | None:
    """The shape of a model; None for one that is not known."""
    return known_models().get(canonical(spelled))


def without_shape(spelled: str) -> str | None:
    """Why a model cannot be predicted; None for one that can."""
    if shape_named(spelled) is not None:
        return None
    groups = tomllib.loads((DATA / "model_aliases.toml").read_text("utf-8"))["unknown"]
    return f"unknown model {spelled}" + (f": {groups[spelled]}" if spelled in groups else "")
