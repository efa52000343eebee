"""Nodes that give fewer samples than they take: nothing is lost, doubled or put out of order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlinf_graph import rl
from rlinf_graph.cli.api import compile_pipeline
from rlinf_graph.compiler.explain.acceptance import acceptance_lines
from rlinf_graph.compiler.passes import run_passes
from rlinf_graph.ir import packed
from rlinf_graph.nodes.execution import Execution, executing
from tests.nodes.conftest import make_rollouts

policy = rl.Model("Qwen/Qwen2.5-0.5B")

Groups = list[list[float]]
"""Rewards of the samples of each group."""

groups_of_rewards = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), max_size=6
)


def samples_of(groups: Groups, size: int = 4) -> tuple[rl.Rollouts, rl.Rewards]:
    """Sample j of group g has index `g * size + j`; its answer names both."""
    index = [g * size + j for g, rewards in enumerate(groups) for j in range(len(rewards))]
    owner = [g for g, rewards in enumerate(groups) for _ in rewards]
    answers = [f"{g}.{j}" for g, rewards in enumerate(groups) for j in range(len(rewards))]
    rollouts = make_rollouts(answers, group=owner).replace(index=torch.tensor(index).long())
    rollouts = rollouts.replace(group=torch.tensor(owner).long())
    values = torch.tensor([r for rewards in groups for r in rewards], dtype=torch.float64)
    return rollouts, rl.Rewards(index=rollouts.index, group=rollouts.group, values=values)


def running() -> Execution:
    return Execution(node="node", seed=1)


@settings(max_examples=50, deadline=None)
@given(groups_of_rewards)
def test_groups_of_different_rewards_are_kept_whole(groups: Groups) -> None:
    rollouts, rewards = samples_of(groups)
    with executing(running()) as here:
        kept, of_them = rl.keep_mixed(rollouts, rewards)
    mixed = [g for g, found in enumerate(groups) if len({*found}) > 1]
    assert kept.responses == [f"{g}.{j}" for g in mixed for j in range(len(groups[g]))]
    assert kept.index.tolist() == [g * 4 + j for g in mixed for j in range(len(groups[g]))]
    assert of_them.values.tolist() == [r for g in mixed for r in groups[g]]
    assert of_them.index.tolist() == kept.index.tolist()
    shares = here.metrics.values()
    assert shares == ({"filter/accepted": len(mixed) / len(groups)} if groups else {})


def test_groups_are_found_wherever_their_samples_stand() -> None:
    rollouts, rewards = samples_of([[1, 1], [0, 1], [1, 0]])
    rows = [2, 0, 5, 1, 4, 3]
    kept, _ = rl.keep_mixed(packed.select(rollouts, rows), packed.select(rewards, rows))
    assert kept.responses == ["1.0", "2.1", "2.0", "1.1"]


def test_metrics_of_ranks_add_up_to_the_share_of_groups() -> None:
    with executing(running()) as here:
        rl.keep_mixed(*samples_of([[0, 1], [1, 1], [0, 0]]))
        rl.keep_mixed(*samples_of([[0, 1]]))
        rl.keep_mixed(*samples_of([]))
    assert here.metrics.values() == {"filter/accepted": 0.5}


@settings(max_examples=50, deadline=None)
@given(st.lists(groups_of_rewards, min_size=1, max_size=4), st.integers(1, 8), st.randoms())
def test_settling_takes_the_first_groups_once_and_numbers_them(
    rounds: list[Groups], wanted: int, random: Any
) -> None:
    """In any order of arrival, over any rounds."""
    missing, found = rl.demand(wanted), list[str]()
    taken: list[rl.Rollouts] = []
    with executing(running()) as here:
        for number, groups in enumerate(rounds):
            rollouts, rewards = samples_of(groups)
            rollouts = rollouts.replace(responses=[f"{number}:{r}" for r in rollouts.responses])
            found += [r.rpartition(".")[0] for r in rollouts.responses]
            rows = list(range(len(rollouts)))
            random.shuffle(rows)
            missing, kept, of_them = rl.settle(
                missing, packed.select(rollouts, rows), packed.select(rewards, rows),
                groups=wanted, samples=4,
            )  # fmt: skip
            by_answer = dict(zip(rollouts.responses, rewards.values.tolist(), strict=True))
            assert of_them.values.tolist() == [by_answer[r] for r in kept.responses]
            assert of_them.index.tolist() == kept.index.tolist()
            taken.append(kept)
    names = list(dict.fromkeys(found))[:wanted]
    whole = packed.concat(taken)
    assert [r.rpartition(".")[0] for r in whole.responses] == [n for n in found if n in names]
    assert whole.group.tolist() == [names.index(n) for n in found if n in names]
    places = [int(r.rpartition(".")[2]) for r in whole.responses]
    assert whole.index.tolist() == [
        4 * g + j for g, j in zip(whole.group.tolist(), places, strict=True)
    ]
    assert int(missing.groups) == wanted - len(names)
    assert int(missing.found) == len(names)
    assert here.metrics.values()["refill/short"] == wanted - len(names)


def test_metrics_of_rounds() -> None:
    missing = rl.demand(3)
    rounds: list[Groups] = [[[0, 1]], [], [[0, 1], [0, 1]], []]
    with executing(running()) as here:
        for groups in rounds:
            tried = samples_of(groups)
            missing, _, _ = rl.settle(missing, *tried, groups=3, samples=4, batch=2)
    assert here.metrics.values() == {
        "refill/acceptance": 3 / 6, "refill/rounds": 3, "refill/short": 0
    }  # fmt: skip


def test_a_group_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="a group of 3 samples, 2 at most expected"):
        rl.settle(rl.demand(1), *samples_of([[0, 1, 0]]), groups=1, samples=2)


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    path = tmp_path / "numbers.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": str(i), "truth": i}) for i in range(10)))
    return str(path)


def test_a_source_gives_what_is_wanted_and_no_more_than_its_batch(numbers: str) -> None:
    registers: dict[str, Any] = {}
    given: list[list[str]] = []
    places: list[list[int]] = []
    for wanted in (9, 3, 1, 4):
        with executing(Execution(node="dataset", registers=registers)):
            made = rl.dataset(numbers, batch=4, shuffle=False, wanted=rl.demand(wanted))
        given.append([str(prompt) for prompt in made.prompts])
        places.append(made.index.tolist())
        assert made.group.tolist() == made.index.tolist()
    assert given == [["0", "1", "2", "3"], ["4", "5", "6"], ["7"], ["8", "9", "0", "1"]]
    assert places == [[0, 1, 2, 3], [0, 1, 2], [0], [0, 1, 2, 3]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10), st.integers(0, 12))
def test_few_prompts_are_spread_over_the_batch(batch: int, wanted: int) -> None:
    data = str(Path(__file__).parents[2] / "demo" / "arithmetic" / "train.jsonl")
    with executing(running()):
        index = rl.dataset(data, batch=batch, wanted=rl.demand(wanted)).index.tolist()
    count = min(batch, wanted)
    assert len({*index}) == len(index) == count
    assert index == sorted(index)
    assert all(0 <= i < batch for i in index)
    for ranks in (r for r in range(1, batch + 1) if batch % r == 0):
        shares = [sum(i * ranks // batch == rank for i in index) for rank in range(ranks)]
        assert max(shares) - min(shares) <= 1


def test_more_prompts_may_be_tried_than_groups_are_wanted(numbers: str) -> None:
    with executing(running()) as here:
        made = [
            rl.dataset(numbers, batch=4, wanted=rl.demand(wanted), tries=1.5)
            for wanted in (0, 1, 2, 3)
        ]
        rl.settle(rl.demand(2), *samples_of([[0, 1]]), groups=2, samples=4, batch=4, tries=1.5)
    assert [len(prompts) for prompts in made] == [0, 2, 3, 4]
    assert here.metrics.values()["refill/acceptance"] == pytest.approx(1 / 3)


def test_a_source_stays_where_it_is_when_nothing_is_wanted(numbers: str) -> None:
    registers: dict[str, Any] = {}
    with executing(Execution(node="dataset", registers=registers)):
        rl.dataset(numbers, batch=4, wanted=rl.demand(2))
        before = json.dumps(registers)
        made = rl.dataset(numbers, batch=4, wanted=rl.demand(0))
    assert (len(made), made.prompts) == (0, [])
    assert json.dumps(registers) == before


def attempt_on(path: str) -> Any:
    """Samples 0 to 3 of each prompt, right where the prompt's number says so."""

    def attempt(wanted: rl.Demand) -> tuple[rl.Rollouts, rl.Rewards]:
        prompts = rl.dataset(path, batch=4, shuffle=False, wanted=wanted)
        numbers = [int(str(p)) for p in prompts.prompts]
        rewards = [[float(j == 0 and n % 3 == 0) for j in range(4)] for n in numbers]
        rollouts, given = samples_of(rewards)
        rollouts = rollouts.replace(prompts=[p for p in prompts.prompts for _ in range(4)])
        return rl.keep_mixed(rollouts, given)

    return attempt


@pytest.mark.parametrize(("rounds", "found"), [(8, ["0", "3", "6"]), (2, ["0", "3"]), (1, ["0"])])
def test_refill_on_values(rounds: int, found: list[str], numbers: str) -> None:
    with executing(running()) as here:
        rollouts, rewards = rl.refill(attempt_on(numbers), groups=3, rounds=rounds, acceptance=0.3)
    assert rollouts.prompts == [p for p in found for _ in range(4)]
    assert rollouts.index.tolist() == list(range(4 * len(found)))
    assert rewards.values.tolist() == [1.0, 0.0, 0.0, 0.0] * len(found)
    assert here.metrics.values()["refill/short"] == 3 - len(found)


def test_overlong_answers_lose_up_to_one() -> None:
    lengths = [1, 6, 8, 9, 10, 13]
    rollouts = make_rollouts(["a"] * 6, masks=[[0, 0] + [1] * n for n in lengths])
    given = torch.ones(6, dtype=torch.float64)
    rewards = rl.Rewards(index=rollouts.index, group=rollouts.group, values=given)
    with executing(running()) as here:
        made = rl.overlong_penalty(rollouts, rewards, limit=10, buffer=4)
    assert made.values.tolist() == [1, 1, 0.5, 0.25, 0, 0]
    assert rewards.values.tolist() == [1.0] * 6
    assert here.metrics.values()["reward/overlong"] == pytest.approx((0.5 + 0.75 + 1 + 1) / 6)


@rl.pipeline
def dapo(
    groups: int = 32,
    batch: int | None = 24,
    tries: float = 1.0,
    rounds: int = 4,
    acceptance: float = 0.6,
    keep: int | None = None,
    buffer: int = 2,
    use_wanted: bool = True,
    whole: bool = True,
) -> None:
    def attempt(wanted: rl.Demand) -> Any:
        given = wanted if use_wanted else None
        prompts = rl.dataset("openai/gsm8k", batch=batch, wanted=given, tries=tries)
        rollouts = rl.rollout(policy, prompts, samples=8, max_tokens=100, keep=keep)
        rewards = rl.verify(rollouts, len)
        return rl.keep_mixed(rollouts, rewards) if whole else rollouts

    rollouts, rewards = rl.refill(attempt, groups=groups, rounds=rounds, acceptance=acceptance)
    shaped = rl.overlong_penalty(rollouts, rewards, limit=100, buffer=buffer)
    advantages = rl.group_advantages(shaped)
    rl.sync(rl.train(policy, rollouts, advantages, minibatch=64), into=policy)


@pytest.mark.parametrize(
    ("parameters", "expected", "samples"),
    [
        ({}, 3, 256),
        ({"acceptance": 0.1}, 4, 256),
        ({"keep": 2}, 3, 64),
        ({"batch": 64}, 2, 256),
        ({"batch": 64, "tries": 2.0}, 1, 256),
    ],
)
def test_what_planning_counts_on(parameters: dict[str, Any], expected: float, samples: int) -> None:
    graph = run_passes(dapo.build(**parameters))
    loop = graph.node("loop attempt").loop
    assert loop is not None
    assert (loop.length, loop.expected) == (4, expected)
    train = graph.node("train policy")
    volume = graph.volume(train, train.inputs[0].source)
    assert (volume.samples, volume.group) == (samples, parameters.get("keep", 8))
    assert graph.node("rollout policy").steps == expected


@pytest.mark.parametrize(
    ("parameters", "code", "text"),
    [
        ({"groups": 0}, "RG0104", "`groups` of rl.refill is 0"),
        ({"rounds": 0}, "RG0104", "`rounds` of rl.refill is 0"),
        ({"acceptance": 0.0}, "RG0104", "`acceptance` of rl.refill is 0.0; it lies in (0, 1]"),
        ({"acceptance": 1.5}, "RG0104", "`acceptance` of rl.refill is 1.5"),
        ({"batch": None}, "RG0104", "`dataset` gives what is wanted, and has no limit"),
        ({"tries": 0.5}, "RG0104", "`tries` of `dataset` is 0.5; it has to be at least 1"),
        ({"use_wanted": False}, "RG0206", "does not use what is wanted"),
        ({"whole": False}, "RG0206", "`attempt` returns Rollouts; an attempt returns Rollouts and"),
        ({"keep": 0}, "RG0104", "`keep` of `rollout policy` is 0; it lies between 1 and samples=8"),
        ({"keep": 9}, "RG0104", "`keep` of `rollout policy` is 9"),
        ({"buffer": 0}, "RG0104", "`buffer` of `overlong_penalty` is 0"),
        ({"buffer": 101}, "RG0104", "`buffer` of `overlong_penalty` is 101"),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(
    parameters: dict[str, Any], code: str, text: str
) -> None:
    with pytest.raises(rl.CompileError) as caught:
        compile_pipeline(dapo, "1xh100", parameters=parameters)
    (found,) = [d for d in caught.value.diagnostics if text in d.message]
    assert found.code == code
    assert found.span is not None
    assert found.span.file.endswith("test_filter.py")


def test_measured_acceptance_stands_beside_the_declared() -> None:
    graph = run_passes(dapo.build())
    metrics = {"refill/acceptance": 0.5, "refill/rounds": 3.0, "refill/short": 0.0}
    more = {"refill/acceptance": 0.6, "refill/rounds": 4.0, "refill/short": 1.0}
    assert list(acceptance_lines(graph, [metrics, more])) == [
        "refill: acceptance 0.55 measured, 0.60 declared; 3.5 rounds an iteration; too few in 1 of "
        "2 iterations"
    ]
    far = list(acceptance_lines(graph, [{**metrics, "refill/acceptance": 0.2}]))
    assert far[1].strip() == "acceptance=0.20 would let the plan count on what is found"
    assert list(acceptance_lines(graph, [{"reward/mean": 1.0}])) == []
