"""Rules of the repository that no other tool checks."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 400
CUDA = ("cuda-", "nvidia-", "triton")
ELSEWHERE = re.compile(r"(?<![\w.~-])/(?:work|home|root|Users|opt|mnt)/|file:(?=//)")
SUPPRESSION = re.compile(r"#\s*(?:noqa|type:\s*ignore|pyright:\s*ignore)\b(?P<rest>.*)")
RULE_AND_REASON = re.compile(r"(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*|\[[\w, -]+\])\s*\W*\w.+")


def repository_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    return [path for name in listed.stdout.split("\0") if (path := ROOT / name).is_file()]


def numbered_lines(suffixes: tuple[str, ...] | None = None) -> Iterator[tuple[str, str]]:
    for path in repository_files():
        if suffixes is not None and path.suffix not in suffixes:
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def locked(device: str) -> list[str]:
    return (ROOT / "requirements" / f"{device}.txt").read_text(encoding="utf-8").splitlines()


def test_python_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in repository_files()
        if path.suffix == ".py"
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_file_names_a_place_on_one_machine() -> None:
    assert [f"{where}: {line}" for where, line in numbered_lines() if ELSEWHERE.search(line)] == []


def test_every_suppression_names_its_rule_and_its_reason() -> None:
    wrong = [
        f"{where}: {line.strip()}"
        for where, line in numbered_lines((".py",))
        if (found := SUPPRESSION.search(line)) and not RULE_AND_REASON.match(found["rest"])
    ]
    assert wrong == []


def test_every_lint_exception_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    codes = [line for line in text.splitlines() if re.match(r'\s+"[A-Z]+\d+",', line)]
    assert codes
    assert [line for line in codes if "#" not in line] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_lock_pins_what_the_project_declares(device: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = {pin.name: pin for pin in map(Requirement, locked(device))}
    for requirement in map(Requirement, declared):
        version = str(pins[requirement.name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), requirement.name


def test_locks_differ_in_the_build_of_torch_only() -> None:
    without_cuda = [pin for pin in locked("gpu") if not pin.startswith((*CUDA, "torch=="))]
    assert [pin for pin in locked("cpu") if not pin.startswith("torch==")] == without_cuda


def test_the_environment_of_vllm_differs_only_in_what_vllm_asks_for() -> None:
    """Ray's workers there need the driver's Ray, and batches are pickled between the two."""
    ours, theirs = (
        {pin.name: pin for pin in map(Requirement, locked(d))} for d in ("cpu", "vllm-cpu")
    )
    both = {name for name in ours.keys() & theirs.keys() if not ours[name].marker}
    assert {"ray", "numpy", "pydantic", "transformers", "cloudpickle"} <= both
    differ = [name for name in both if ours[name].specifier != theirs[name].specifier]
    assert differ in ([], ["setuptools"])
    assert str(theirs["torch"].specifier) in [f"=={v}" for v in _versions("torch")]
    assert not {"torchvision", "torchaudio", "torchcodec"} & theirs.keys()


def _versions(name: str) -> list[str]:
    pins = [pin for pin in map(Requirement, locked("cpu")) if pin.name == name]
    return [str(pin.specifier).removeprefix("==") for pin in pins]
