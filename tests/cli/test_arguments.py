"""Short forms of arguments, and the list of engines."""

from __future__ import annotations

import sys

import pytest

from rlinf_graph.cli.arguments import pythons_of, spelled_out
from rlinf_graph.cli.engines import engines_text
from rlinf_graph.nodes.installed import Installed


def test_settings_may_follow_one_another() -> None:
    given = ["run", "file.py", "--set", "rollout=vllm", "train=megatron", "--iterations", "3"]
    whole = ["run", "file.py", "--set", "rollout=vllm", "--set", "train=megatron"]
    assert spelled_out(given) == [*whole, "--iterations", "3"]
    assert spelled_out(["compile", "a=b", "--explain"]) == ["compile", "a=b", "--explain=text"]


def test_interpreters_come_from_the_environment_and_from_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RLINF_GRAPH_PYTHON_VLLM", "here")
    assert pythons_of(None) == {"vllm": "here"}
    assert pythons_of(["vllm=there", "torch=x"]) == {"vllm": "there", "torch": "x"}


def test_engines_are_listed_with_what_they_need() -> None:
    text = engines_text(Installed((("megatron", sys.executable),)))
    assert "torch: generate, reply, forward, train, act" in text
    assert f"runs in {sys.executable}" in text
    assert "cpu: installed (torch " in text
    assert "vllm" in text
    assert "only where it is named" in text
