"""What the editor says: pyright accepts right pipelines and reports wrong ones at their line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ROOT / "tests" / "typing"
EXPECTED = re.compile(r"# expect: (?P<rules>[\w, ]+)$")


@pytest.fixture(scope="module")
def reported() -> Counter[tuple[str, int, str]]:
    """(file, line, rule) of everything that pyright finds in the files of `tests/typing`."""
    command = [sys.executable, "-m", "pyright", "--outputjson", *map(str, FILES.glob("*.py"))]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    result = json.loads(made.stdout)
    assert result["summary"]["filesAnalyzed"] == len(list(FILES.glob("*.py"))) > 0
    return Counter(
        (Path(d["file"]).name, d["range"]["start"]["line"] + 1, d.get("rule", "syntax"))
        for d in result["generalDiagnostics"]
    )


@pytest.mark.parametrize("file", sorted(FILES.glob("*.py")), ids=lambda f: f.stem)
def test_pyright_reports_what_the_file_expects(
    file: Path, reported: Counter[tuple[str, int, str]]
) -> None:
    expected = Counter(
        (file.name, number, rule.strip())
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if (found := EXPECTED.search(line))
        for rule in found["rules"].split(",")
    )
    own = Counter({key: count for key, count in reported.items() if key[0] == file.name})
    assert sorted(own.elements()) == sorted(expected.elements())
