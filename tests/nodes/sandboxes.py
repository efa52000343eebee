"""What tests of the sandbox share: its template here, and what is left of its processes."""

import os
import select
from pathlib import Path

import pytest

from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.sandbox_host import Template, template_for

ROOT = Path(__file__).parents[2]
WALLS = [("namespaces", "landlock"), ("namespaces",), ("landlock",)]
DEADLINE = 20.0


def template(walls: tuple[str, ...]) -> Template:
    """The template that uses just these; the test is skipped where one does not work."""
    try:
        made = template_for(walls)
    except CompileError as error:
        pytest.skip(f"no {' and '.join(walls)} here: {error.diagnostics[0].notes}")
    for wall in walls:
        if made.report[wall]:
            pytest.skip(f"no {wall} here: {made.report[wall]}")
    return made


def template_for_any() -> Template:
    """The template that a sandbox uses unless told otherwise; the test is skipped without one."""
    try:
        return template_for(("namespaces", "landlock"))
    except CompileError as error:
        pytest.skip(f"programs cannot be isolated here: {error.diagnostics[0].notes}")


def lasting(template: Template) -> set[int]:
    """Forks of a template that do not end: its descendants, and orphans with its command line."""
    root = template.process.pid
    command = Path(f"/proc/{root}/cmdline").read_bytes()
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")")[-1].split()[1])
            orphaned = parent == 1 and (folder / "cmdline").read_bytes() == command
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = root if orphaned else parent
    found = {root}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return {p for p in found - {root} if not ends(p)}


def ends(process: int) -> bool:
    """Wait for a process, which need not be a child."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], DEADLINE)[0])
    finally:
        os.close(descriptor)
