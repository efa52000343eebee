"""Data sources: what they read, in which order, and what they say when they cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlinf_graph import rl
from rlinf_graph.dsl.node import definitions
from rlinf_graph.nodes import rows
from rlinf_graph.nodes.cursor import order
from rlinf_graph.nodes.execution import Execution, executing

Maker = Callable[..., str]


@pytest.fixture
def problems(tmp_path: Path) -> Maker:
    """Write rows to a file and give its path."""

    def write(count: int = 7, name: str = "problems.jsonl", row: Any = None) -> str:
        made = [
            row or {"question": f"{i}+{i}", "answer": str(2 * i), "level": i} for i in range(count)
        ]
        path = tmp_path / name
        if name.endswith(".parquet"):
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(made), path)
        elif name.endswith(".jsonl"):
            path.write_text("\n".join(json.dumps(r) for r in made) + "\n\n")
        else:
            path.write_text(json.dumps(made))
        return str(path)

    return write


def taken(path: str, iterations: int, registers: dict[str, Any], **options: Any) -> list[list[int]]:
    """The levels that each iteration gives."""
    made = []
    for _ in range(iterations):
        with executing(Execution(node="dataset", seed=3, registers=registers)):
            prompts = rl.dataset(path, **options)
        made.append([c["level"] for c in prompts.columns])
    return made


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_local_files_are_read(problems: Maker, name: str) -> None:
    path = problems(3, name)
    made = rl.dataset(path)
    assert made.prompts == ["0+0", "1+1", "2+2"]
    assert made.columns == [{"level": i, "truth": str(2 * i)} for i in range(3)]
    assert made.index.tolist() == made.group.tolist() == [0, 1, 2]
    assert rows.look(path)[:2] == (3, ("question", "answer", "level"))


def test_a_folder_saved_by_datasets_is_read(tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list([{"problem": "p", "solution": "s"}])
    datasets.DatasetDict({"test": made}).save_to_disk(str(tmp_path / "saved"))
    prompts = rl.dataset(str(tmp_path / "saved"), split="test")
    assert (prompts.prompts, prompts.columns) == (["p"], [{"truth": "s"}])
    with pytest.raises(rl.CompileError, match="gives no data set with split `train`"):
        rl.dataset(str(tmp_path / "saved"))


def test_the_whole_split_comes_in_file_order_every_time(problems: Maker) -> None:
    made = taken(problems(), 2, {}, batch=None)
    assert made == [list(range(7)), list(range(7))]


def test_batches_run_over_the_end_of_an_epoch_without_loss(problems: Maker) -> None:
    made = [i for batch in taken(problems(), 7, {}, batch=3) for i in batch]
    epochs = [made[start : start + 7] for start in range(0, 21, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] == order(3, "dataset", 0, 7).tolist()


def test_without_shuffling_rows_come_in_file_order(problems: Maker) -> None:
    assert taken(problems(), 3, {}, batch=3, shuffle=False) == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]


def test_a_source_goes_on_where_its_register_stands(problems: Maker) -> None:
    path = problems()
    whole = taken(path, 6, {}, batch=3)
    registers: dict[str, Any] = {}
    first = taken(path, 2, registers, batch=3)
    saved = json.loads(json.dumps(registers))
    assert saved == {"dataset": {"epoch": 0, "cursor": 6, "seed": 3}}
    assert first + taken(path, 4, saved, batch=3) == whole


def test_the_order_depends_on_seed_node_and_epoch_only() -> None:
    one = order(0, "dataset", 0, 50).tolist()
    assert one == order(0, "dataset", 0, 50).tolist()
    others = [order(1, "dataset", 0, 50), order(0, "dataset 2", 0, 50), order(0, "dataset", 1, 50)]
    assert all(other.tolist() != one for other in others)
    assert one[:5] == [42, 0, 43, 27, 47]  # written down: a new numpy must not change runs


def test_prompts_become_messages_on_request(problems: Maker) -> None:
    made = rl.dataset(problems(1), chat=True)
    assert made.prompts == [[{"role": "user", "content": "0+0"}]]
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert rl.dataset(problems(1, "c.jsonl", {"messages": chat})).prompts == [chat]


def test_columns_can_be_named(problems: Maker) -> None:
    path = problems(1, row={"text": "t", "prompt": "p", "target": 4})
    made = rl.dataset(path, prompt="text", truth="target")
    assert (made.prompts, made.columns) == (["t"], [{"prompt": "p", "truth": 4}])


def test_examples_have_prompt_and_completion(problems: Maker) -> None:
    made = rl.examples(problems(2))
    assert (made.prompts, made.completions) == (["0+0", "1+1"], ["0", "2"])
    talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    made = rl.examples(problems(1, "talk.jsonl", {"messages": talk}))
    assert (made.prompts, made.completions) == ([talk[:1]], ["a"])
    with pytest.raises(rl.CompileError, match="does not end with the assistant"):
        rl.examples(problems(1, "cut.jsonl", {"messages": talk[:1]}))


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"text": "t"}, {}, "which is the prompt?"),
        ({"text": "t"}, {}, "its columns: text"),
        ({"prompt": "t"}, {"prompt": "promt"}, "has no column `promt`"),
        ({"prompt": "t"}, {"truth": "gold"}, "has no column `gold`"),
        ({"prompt": 7}, {}, "a prompt is text, or a list of messages"),
        ({"prompt": "t"}, {"batch": 9}, "has 1 rows, fewer than a batch of 9"),
        ({"prompt": "t"}, {"split": "test"}, "has no split `test`"),
    ],
)
def test_data_that_is_not_what_is_asked_for(
    problems: Maker, row: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    """The same text when it runs and, with the place in the user's source, when it is planned."""
    path = problems(1, row=row)
    with pytest.raises(rl.CompileError, match="RG0505") as caught:
        rl.dataset(path, **options)
    assert said in str(caught.value)
    graph = pipeline_of(path, **options).build()
    found = next(iter(definitions["dataset"].check(graph.node("dataset"), graph)))  # type: ignore[misc]  it has one
    assert said in found.render()
    assert found.span is not None
    assert found.span.source.strip() == "prompts = rl.dataset(path, **options)"


def pipeline_of(path: str, **options: Any) -> rl.Pipeline:
    @rl.pipeline
    def made() -> None:
        prompts = rl.dataset(path, **options)
        rl.verify(rl.rollout(rl.Model("m"), prompts), lambda answer, truth, level: 1.0)

    return made


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gone.jsonl", None, "there is no file"),
        ("bad.jsonl", "{", "one JSON object a line"),
        ("list.json", "[1]", "entry 0 is int, not an object"),
        ("object.json", '{"a": 1}', "is str, not an object"),
        ("empty.jsonl", "\n", "has no rows"),
        ("bad.parquet", "no", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    for read in (rows.read, rows.look):
        with pytest.raises(rl.CompileError, match="RG0505") as caught:
            read(str(tmp_path / name))
        assert said in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(rl.CompileError, match="RG0505") as caught:
        rl.dataset("nobody/nothing", batch=2)
    text = str(caught.value)
    assert "was not loaded from the Hugging Face hub" in text
    assert "ConnectionError: no route" in text
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_the_configuration_of_a_well_known_data_set_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"question": "q", "answer": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows._load.cache_clear()
    assert rl.dataset("openai/gsm8k", split="test").columns == [{"truth": "a"}]
    rows._load.cache_clear()
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]


def volume_of(path: str, **options: Any) -> rl.Volume:
    made = definitions["dataset"]
    defaults = {o.name: o.default for o in made.type.options}
    assert made.volume is not None
    (volume,) = made.volume(rl.Call({}, {**defaults, "path": path, **options}))
    return volume


def test_planning_counts_files_and_estimates_their_prompts(problems: Maker) -> None:
    path = problems(5, row={"prompt": "x" * 40, "truth": "y"})
    assert volume_of(path) == rl.Volume(
        5, rl.Lengths.fixed(10, "estimated: characters / 4"), prompt_tokens=10
    )
    assert volume_of(path, batch=2, prompt_tokens=6).lengths == rl.Lengths.fixed(6, "declared")


def test_planning_knows_published_sizes_and_says_what_it_assumes() -> None:
    assert volume_of("openai/gsm8k", split="test").samples == 1319
    assert volume_of("openai/gsm8k", batch=512).samples == 512
    assert volume_of("me/mine", size=77).samples == 77
    assumed = volume_of("me/mine")
    assert (assumed.samples, assumed.lengths.mean) == (1000, 256)
    assert assumed.lengths.origin == "declared default; 1000 rows assumed"


def test_planning_reports_a_verifier_that_the_columns_do_not_fill(problems: Maker) -> None:
    def check(path: str) -> list[rl.Diagnostic]:
        graph = pipeline_of(path).build()
        made = definitions["verify"].check
        assert made is not None
        return list(made(graph.node("verify"), graph))

    assert check(problems(1)) == []
    (found,) = check(problems(1, "b.jsonl", {"question": "q", "answer": "a"}))
    assert found.code == "RG0506"
    assert "`level`, which is no column" in found.message
    assert found.notes[0] == "columns: prompt, truth"
    assert check("some/hub-name") == []


def test_sources_called_directly_keep_apart(problems: Maker) -> None:
    one, two = problems(4, "one.jsonl"), problems(4, "two.jsonl")
    first = [c["level"] for c in rl.dataset(one, batch=2, shuffle=False).columns]
    other = [c["level"] for c in rl.dataset(two, batch=2, shuffle=False).columns]
    second = [c["level"] for c in rl.dataset(one, batch=2, shuffle=False).columns]
    assert (first, other, second) == ([0, 1], [0, 1], [2, 3])
