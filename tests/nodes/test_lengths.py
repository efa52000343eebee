import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlinf_graph import rl
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.lengths import log_normal, read_lengths, response_lengths


@given(
    mean=st.floats(10, 5000),
    room=st.floats(1.2, 20),
    width=st.floats(0, 2),
    count=st.integers(2, 60),
)
def test_a_cut_log_normal_keeps_its_mean_and_its_limit(
    mean: float, room: float, width: float, count: int
) -> None:
    made = log_normal(mean, mean * room, width, count)
    assert len(made) == count
    assert sum(made) / count == pytest.approx(mean, rel=1e-3)
    assert list(made) == sorted(made)
    assert made[-1] <= mean * room * (1 + 1e-9)


def test_more_width_is_a_longer_tail() -> None:
    tails = [log_normal(1000, 1e9, width)[-1] for width in (0.0, 0.3, 0.8, 1.5)]
    assert tails == sorted(tails)
    assert tails[0] == 1000


@given(st.lists(st.floats(1, 1e5), min_size=1, max_size=300))
def test_a_file_of_lengths_keeps_its_mean(tmp_path_factory, lengths: list[float]) -> None:
    path = tmp_path_factory.mktemp("lengths") / "lengths.jsonl"
    path.write_text("\n".join(json.dumps(t) for t in lengths))
    made = read_lengths(str(path))
    assert len(made) == min(50, len(lengths))
    assert sum(made) / len(made) == pytest.approx(sum(lengths) / len(lengths))
    assert list(made) == pytest.approx(sorted(made))
    assert max(made) <= max(lengths) * (1 + 1e-9)


def test_objects_are_read_by_field_and_cut_at_the_token_limit(tmp_path: Path) -> None:
    path = tmp_path / "lengths.jsonl"
    path.write_text(
        '{"response_tokens": 30, "reward": 1}\n\n{"length": 10}\n{"response_length": 900}'
    )
    assert read_lengths(str(path)) == pytest.approx((10, 30, 900))
    made = response_lengths(512, str(path))
    assert made.quantiles == pytest.approx((10, 30, 512))
    assert made.origin == f"measured: {path}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no lines"),
        ("12\nlong\n", "line 2 has no length"),
        ('{"tokens": 3}', "line 1 has no length"),
        ("[1, 2]", "line 1 has no length"),
        ("5\n-3", "line 2 has a length of -3"),
        (None, "No such file"),
    ],
)
def test_a_file_without_lengths_is_refused_with_its_line(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    path = tmp_path / "lengths.jsonl"
    if text is not None:
        path.write_text(text)
    policy = rl.Model("Qwen/Qwen2.5-0.5B")

    @rl.pipeline
    def brief() -> None:
        prompts = rl.dataset("openai/gsm8k", batch=8, prompt_tokens=50)
        rollouts = rl.rollout(policy, prompts, samples=8, lengths=str(path))
        rewards = rl.verify(rollouts, lambda answer, truth: 1.0)
        advantages = rl.group_advantages(rewards)
        rl.sync(rl.train(policy, rollouts, advantages), into=policy)

    with pytest.raises(CompileError) as raised:
        run_passes(brief.build())
    (found,) = raised.value.diagnostics
    assert found.code == "RG0104"
    assert reason in found.message
