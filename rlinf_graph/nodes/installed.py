"""Which engines have what they need here, or in the interpreter that is given for them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.nodes.capabilities import Support
from rlinf_graph.nodes.registry import capabilities_of

ANSWER_S = 60
"""Seconds that another interpreter may take to tell what is installed there."""

_ASK = (
    "import json, sys; from importlib import metadata\n"
    "def version(name):\n"
    "    try: return metadata.version(name)\n"
    "    except metadata.PackageNotFoundError: return None\n"
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)


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
        CompileError: RG0513, for an interpreter that does not answer.
    """
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in support.packages]
    found = _versions(tuple(r.name for r in needed), python)
    return tuple(Package(r.name, str(r.specifier), found[r.name]) for r in needed)


@dataclass(frozen=True)
class Installed:
    """What engines have of what they need, in the interpreters that they run in.

    Attributes:
        pythons: pairs of an engine and an interpreter of another environment; others run in this.
        own: whether all have to live in this one process.
    """

    pythons: tuple[tuple[str, str], ...] = ()
    own: bool = False

    def python(self, name: str) -> str | None:
        """The interpreter that is given for an engine."""
        return dict(self.pythons).get(name)

    def has(self, name: str, kind: str) -> bool:
        """Whether an engine can start on a kind of device, `gpu` or `cpu`."""
        support = capabilities_of(name).kinds.get(kind)
        return support is not None and self.hosts(name) and not self.lacking(name, support)

    def hosts(self, name: str) -> bool:
        """Whether there are processes for an engine that needs some of its own."""
        return not self.own or not (capabilities_of(name).hosted or self.python(name))

    def lacking(self, name: str, support: Support) -> tuple[Package, ...]:
        """What an engine needs and does not have."""
        packages = packages_of(support, self.python(name))
        return tuple(package for package in packages if not package.fits)


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
            "RG0513",
            f"the interpreter {python} does not say what is installed: {error}",
            help=("--python ENGINE=PATH names a python of an environment that has the engine",),
        ) from error


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
