"""Pins on disk: TOML, such as `"actor,rollout" = "0-7"`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from rlinf_graph.ir.diagnostic import fail

EXAMPLE = '"actor,rollout" = "0-7"'


def read_pins(path: Path | None, more: Mapping[str, str]) -> dict[str, str]:
    """The pins in a file, and more that are stronger.

    Raises:
        CompileError: RG0407, for a file that is not there or holds something else.
    """
    if path is None:
        return dict(more)
    try:
        text = path.read_text("utf-8")
        given = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise fail("RG0407", f"cannot read {path}: {why}") from None
    except tomllib.TOMLDecodeError as error:
        raise fail("RG0407", f"{path}: {error}", help=(EXAMPLE,)) from None
    for name, value in given.items():
        if not isinstance(value, str):
            message = f"{path}: `{name}` is {value!r}, and a pin is text"
            raise fail("RG0407", message, help=(EXAMPLE,))
    return {name: str(value) for name, value in given.items()} | dict(more)
