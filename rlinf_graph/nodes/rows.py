"""Rows of a data set: local files, folders saved by `datasets`, names on the Hugging Face hub.

Readers are imported when they are needed. What planning asks of a local file (how many rows, which
columns, how long the first ones) is found without reading all of it into memory.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from rlinf_graph.ir.diagnostic import fail, suggest

Row = dict[str, Any]
FILES = (".jsonl", ".json", ".parquet")
LOOKED_AT = 200
"""Rows from whose length planning estimates that of all."""


@dataclass(frozen=True)
class Rows:
    """A data set, in file order.

    Attributes:
        count: rows.
        columns: their names.
        take: the rows at some positions.
    """

    count: int
    columns: tuple[str, ...]
    take: Callable[[Sequence[int]], list[Row]]


def is_file(path: str) -> bool:
    """Whether a path means a single local file, there or not."""
    return Path(path).suffix in FILES


def is_local(path: str) -> bool:
    """Whether a path means something on this machine's disk."""
    return is_file(path) or path.startswith((".", "/", "~")) or Path(path).exists()


def read(path: str, split: str = "train", config: str | None = None) -> Rows:
    """Open a data set.

    Args:
        path: a .jsonl, .json or .parquet file, a folder, or a name on the Hugging Face hub.
        split: of a folder or of the hub's data set; a file has no splits.
        config: of the hub's data set, where it has several.

    Raises:
        CompileError: RG0505, with what to change.
    """
    if not is_file(path):
        return _load(path, split, config or known(path).get("config"))
    return _open(*_version(path, split))


def look(path: str, split: str = "train") -> tuple[int, tuple[str, ...], list[Row]]:
    """The number of rows of a local file, its columns, and its first `LOOKED_AT` rows.

    Raises:
        CompileError: RG0505, with what to change.
    """
    return _look(*_version(path, split))


def known(path: str) -> dict[str, Any]:
    """What the table of well-known data sets says: rows by split, and `config`."""
    return _facts().get(path, {})


@functools.cache
def _facts() -> dict[str, dict[str, Any]]:
    text = resources.files("rlinf_graph.nodes").joinpath("dataset_facts.toml").read_text()
    return tomllib.loads(text)


def _version(path: str, split: str) -> tuple[str, int]:
    """A file and when it was written, so that what was read of it can be kept until it changes."""
    file = Path(path).expanduser()
    if split != "train":
        raise fail(
            "RG0505",
            f"`{path}` is a single file, which has no split `{split}`",
            help=("keep each split in a file of its own and leave `split` out",),
        )
    if not file.is_file():
        near = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        notes = (f"looked for in {Path.cwd()}",) if not file.is_absolute() else ()
        raise fail(
            "RG0505",
            f"there is no file `{path}`",
            notes=notes,
            help=(suggest(file.name, near),) if near else ("write the path of a file that exists",),
        )
    return str(file), file.stat().st_mtime_ns


@functools.lru_cache(maxsize=8)
def _open(path: str, _written: int) -> Rows:
    if path.endswith(".parquet"):
        import pyarrow.parquet as parquet

        try:
            table = parquet.read_table(path)
        except Exception as error:
            _unreadable(path, error)
        columns = tuple(table.column_names)
        return Rows(table.num_rows, columns, lambda at: table.take(list(at)).to_pylist())
    rows = list(_json_rows(path))
    columns = _columns(path, rows)
    return Rows(len(rows), columns, lambda at: [rows[i] for i in at])


@functools.lru_cache(maxsize=8)
def _look(path: str, _written: int) -> tuple[int, tuple[str, ...], list[Row]]:
    if path.endswith(".parquet"):
        import pyarrow.parquet as parquet

        try:
            file = parquet.ParquetFile(path)
            batches = file.iter_batches(batch_size=LOOKED_AT)
            first = next((batch.to_pylist() for batch in batches), [])
        except Exception as error:
            _unreadable(path, error)
        return file.metadata.num_rows, tuple(file.schema_arrow.names), first
    if path.endswith(".json"):
        rows = list(_json_rows(path))
        return len(rows), _columns(path, rows), rows[:LOOKED_AT]
    lines = _json_rows(path)
    first = [row for row, _ in zip(lines, range(LOOKED_AT), strict=False)]
    with Path(path).open("rb") as file:
        count = sum(1 for line in file if line.strip())
    return count, _columns(path, first), first


def _json_rows(path: str) -> Iterator[Row]:
    """The objects of a JSON list, or of the lines of a JSONL file; blank lines are skipped."""
    with Path(path).open(encoding="utf-8") as file:
        try:
            lines = enumerate(file, start=1) if path.endswith(".jsonl") else None
            items = ((n, json.loads(t)) for n, t in lines if t.strip()) if lines else None
            for number, row in items if items is not None else enumerate(json.load(file)):
                if not isinstance(row, dict):
                    raise ValueError(f"entry {number} is {type(row).__name__}, not an object")
                yield row
        except (ValueError, TypeError) as error:
            _unreadable(path, error)


def _columns(path: str, rows: Sequence[Row]) -> tuple[str, ...]:
    if not rows:
        raise fail("RG0505", f"`{path}` has no rows")
    return tuple(rows[0])


def _unreadable(path: str, error: Exception) -> NoReturn:
    suffix = Path(path).suffix
    wanted = {
        ".jsonl": "a .jsonl file holds one JSON object a line",
        ".json": "a .json file holds a list of objects",
    }.get(suffix, "write it again with pyarrow or pandas")
    raise fail("RG0505", f"`{path}` cannot be read: {error}", help=(wanted,)) from error


@functools.lru_cache(maxsize=8)
def _load(path: str, split: str, config: str | None) -> Rows:
    """From a folder or from the hub, through `datasets`; random access, not in memory."""
    import datasets

    folder = Path(path).expanduser()
    try:
        if is_local(path) and not folder.exists():
            raise FileNotFoundError(f"there is no folder `{path}`")
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(str(folder))
            data = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            data = datasets.load_dataset(str(folder), config, split=split)
    except Exception as error:
        raise _not_loaded(path, split, error) from error
    return Rows(len(data), tuple(data.column_names), lambda at: data.select(at).to_list())


def _not_loaded(path: str, split: str, error: Exception) -> Exception:
    said = str(error).strip().split("\n")[0][:300]
    note = f"{type(error).__name__}: {said}"
    if is_local(path):
        message = f"folder `{path}` gives no data set with split `{split}`"
        advice = "a folder that datasets' save_to_disk wrote, or one with .jsonl or .parquet files"
    else:
        message = f"data set `{path}`, split `{split}`, was not loaded from the Hugging Face hub"
        advice = (
            "check the name, `split`, `config` and the network, or give a local .jsonl, .json or "
            ".parquet file"
        )
    return fail("RG0505", message, notes=(note,), help=(advice,))
