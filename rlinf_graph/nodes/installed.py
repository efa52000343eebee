"""Which engines have what they need here, or in the interpreter that is given for them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.nodes.capabilities import Support
from rlinf_graph.nodes.registry import capabilities_of, engine_names

ANSWER_S = 60
"""Seconds that another interpreter may take to tell what is installed there."""

_ASK = (
    "import json, sys; from importlib import metadata\n"
    "def version(name):\n"
    "    try: return metadata.version(name)\n"
    "    except metadata.PackageNotFoundError: return None\n"
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)

Usable = frozenset[tuple[str, str]]
"""Engines with the kinds of device, `gpu` or `cpu`, on which they have what they need."""


@dataclass(frozen=True)
class Package:
    """A distribution that an engine needs.

    Attributes:
        name: of the distribution.
        needed: versions, such as `>=0.32,<0.33`; empty for any.
        version: that is installed; None where none is.
    """

    name: str
    needed: str
    version: str | None

    @property
    def fits(self) -> bool:
        """Whether it is there in a version that will do."""
        from packaging.specifiers import SpecifierSet

        if self.version is None:
            return False
        return SpecifierSet(self.needed).contains(self.version, prereleases=True)

    def __str__(self) -> str:
        """What is wrong, or what is there."""
        if self.version is None:
            return f"{self.name} {self.needed}".rstrip() + " is not installed"
        if not self.fits:
            return f"{self.name} {self.version} is installed, {self.needed} is needed"
        return f"{self.name} {self.version}"


def packages_of(support: Support, python: str | None = None) -> tuple[Package, ...]:
    """What an engine needs on a kind of device, with what is there.

    Args:
        support: of the engine.
        python: the interpreter that the engine runs in; by default this one.

    Raises:
        CompileError: RG0503, for an interpreter that does not answer.
    """
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in support.packages]
    found = _versions(tuple(r.name for r in needed), python)
    return tuple(Package(r.name, str(r.specifier), found[r.name]) for r in needed)


def usable_engines(
    pythons: Mapping[str, str] | None = None, names: Iterable[str] | None = None
) -> Usable:
    """The engines that have all they need, by kind of device.

    Args:
        pythons: interpreters, by engine.
        names: of engines to look at; all by default.
    """
    return frozenset(
        (name, kind)
        for name in (engine_names() if names is None else names)
        for kind, support in capabilities_of(name).kinds.items()
        if all(package.fits for package in packages_of(support, (pythons or {}).get(name)))
    )


@cache
def _versions(names: tuple[str, ...], python: str | None) -> dict[str, str | None]:
    if python is None:
        return {name: _version(name) for name in names}
    try:
        asked = subprocess.run(
            [python, "-c", _ASK, *names],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=True,
        )
        return json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise fail(
            "RG0503",
            f"the interpreter {python} does not say what is installed: {error}",
            help=("--python ENGINE=PATH names a python of an environment that has the engine",),
        ) from error


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
