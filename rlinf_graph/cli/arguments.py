"""Command-line arguments as values."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from rlinf_graph.ir.diagnostic import fail

PYTHON = "RLINF_GRAPH_PYTHON_"
"""Begins environment variables that say as `--python` does: RLINF_GRAPH_PYTHON_VLLM=PATH."""


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Arguments without short forms.

    `--explain` alone means `--explain=text`, and `--set A=1 B=2` means `--set A=1 --set B=2`.
    """
    made: list[str] = []
    for argument in arguments:
        goes_on = re.match(r"[A-Za-z_]\w*=", argument) and made[-2:-1] == ["--set"]
        made += ["--set"] if goes_on else []
        made.append("--explain=text" if argument == "--explain" else argument)
    return made


def pairs_of(given: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE as a dictionary.

    Raises:
        CompileError: RG0107, for text of another form.
    """
    pairs: dict[str, str] = {}
    for item in given or []:
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise fail("RG0107", f"cannot read `{item}`", help=("write NAME=VALUE",))
        pairs[name] = value
    return pairs


def pythons_of(given: Sequence[str] | None) -> dict[str, str]:
    """Interpreters by engine: those of environment variables, and before them those given."""
    found = [name for name in os.environ if name.startswith(PYTHON)]
    return {n.removeprefix(PYTHON).lower(): os.environ[n] for n in found} | pairs_of(given)
