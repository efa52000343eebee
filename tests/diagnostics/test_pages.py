"""Each page holds the smallest program that raises its diagnostic, and the mended one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from rlinf_graph.ir.diagnostic import CompileError, codes, page
from tests.diagnostics.pages import ROOT, halves

LONGEST_PAGE = 75
PASSING = (
    (re.compile(r"\b[0-9a-f]{16}\b"), "<hash>"),
    (re.compile(r"(?<=note: answer: ).*"), "<sampled>"),
    (re.compile(r"(?<=note: )The actor is dead.*"), "<ray>"),
    (re.compile(r"\n *= note: (last seen in|the last that it was given).*"), ""),
    (re.compile(r"process \d+ on [\d.]+"), "<process>"),
    (re.compile(r"on [\d.]+, `py-spy dump --pid \d+`"), "on <host>, `py-spy dump --pid <pid>`"),
    (re.compile(r"\b\d+ s(?=[:,]|$)", re.MULTILINE), "# s"),
)
ESTIMATES = re.compile(r"\d+(\.\d+)?(?= GB| s |$)|(?<= )\d+\.\d+(?=  |$)", re.MULTILINE)


def shown(error: CompileError, code: str, folder: Path) -> str:
    """The text without what may change from one machine, or one cost model, to the next."""
    text = str(error).replace(str(folder), "<folder>").replace(str(ROOT), "<root>")
    for pattern, replacement in PASSING:
        text = pattern.sub(replacement, text)
    return ESTIMATES.sub("#", text) if code == "RG0401" else text


@pytest.mark.parametrize("code", codes())
def test_the_program_of_a_page_raises_it_and_the_mended_one_does_not(
    code: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: SnapshotAssertion,
    request: pytest.FixtureRequest,
) -> None:
    wrong, mended = halves(code)
    if "--backend ray" in page(code):
        request.getfixturevalue("ray_nodes")
        monkeypatch.setattr("rlinf_graph.backends.ray.watchdog.DEAF_S", 5.0)
    assert wrong.blocks
    assert mended.blocks
    with pytest.raises(CompileError) as raised:
        wrong.run(folder, monkeypatch)
    assert {d.code for d in raised.value.diagnostics} == {code}
    assert shown(raised.value, code, folder) == snapshot
    copy = folder / "mended"
    shutil.copytree(folder, copy, symlinks=True)
    mended.run(copy, monkeypatch)


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    sources = (ROOT / "rlinf_graph").rglob("*.py")
    raised = {c for file in sources for c in re.findall(r'"(RG\d{4})"', file.read_text("utf-8"))}
    assert sorted(raised) == codes()


@pytest.mark.parametrize("code", codes())
def test_a_page_begins_with_its_code_and_is_short(code: str) -> None:
    lines = page(code).splitlines()
    assert re.fullmatch(rf"# {code}: [a-zA-Z].*[^.]", lines[0])
    assert len(lines) <= LONGEST_PAGE
    assert max(map(len, lines)) <= 125
