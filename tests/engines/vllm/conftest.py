"""One vLLM engine serves many tests: making one takes seconds. Run by `make test-engines`."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlinf_graph.ir.batches import Prompts, Rollouts
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.nodes.engine import Key
from tests.engines.torch.conftest import write_model

if TYPE_CHECKING:
    from rlinf_graph.engines.vllm.engine import VllmEngine

MISSING = "vllm is not installed here: `make test-engines` makes an environment that has it"
SIZES: dict[str, Any] = {
    "hidden_size": 128,  # heads of 32
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
KEY = Key(0, "rollout policy", 5)
TEXTS = ("1+2=", "37+48=", "5=", "123+456=", "a b c", "9+9=")

Make = Callable[..., "VllmEngine"]
Ask = Callable[..., Prompts]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here that uses vLLM is an engine's test, and ends."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "make" in item.fixturenames:
            item.add_marker(pytest.mark.engines)
            item.add_marker(pytest.mark.timeout(300))


def save_random(folder: Path, model_type: str = "qwen2", *, seed: int = 0, **settings: Any) -> Path:
    """A folder with tokenizer, configuration and random weights."""
    write_model(folder, model_type, **(SIZES | settings))
    write_weights(folder, seed)
    return folder


def write_weights(folder: Path, seed: int) -> Any:
    """Write new random weights into the folder; the model that has them."""
    from transformers import AutoConfig

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float().eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return model


def read_model(folder: Path) -> Any:
    """What transformers reads from the folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def scored(model: Any, rollouts: Rollouts) -> list[torch.Tensor]:
    """Logits of each response's tokens, `(length, vocabulary)`, by a fresh forward."""
    found = []
    lengths = rollouts.lengths.tolist()
    for tokens, begin in zip(
        rollouts.tokens.split(lengths), rollouts.prompt_lengths.tolist(), strict=True
    ):
        found.append(model(input_ids=tokens[None], use_cache=False).logits[0, begin - 1 : -1])
    return found


def said(rollouts: Rollouts, name: str = "tokens") -> list[torch.Tensor]:
    """A packed field, of each response."""
    whole = getattr(rollouts, name).split(rollouts.lengths.tolist())
    return [v[b:] for v, b in zip(whole, rollouts.prompt_lengths.tolist(), strict=True)]


def difference(model: Any, rollouts: Rollouts) -> float:
    """The largest between the rollouts' log-probabilities and those of a fresh forward."""
    worst = 0.0
    rows = zip(
        scored(model, rollouts), said(rollouts), said(rollouts, "logprobs"),
        rollouts.temperature.tolist(), strict=True,
    )  # fmt: skip
    for logits, tokens, logprobs, temperature in rows:
        expected = torch.log_softmax(logits / temperature, dim=-1).gather(1, tokens[:, None])[:, 0]
        worst = max(worst, float((expected - logprobs).abs().max()))
    return worst


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("models") / "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def made() -> Iterator[dict[str, VllmEngine]]:
    """The engine that was made last, by what it was made of."""
    engines: dict[str, VllmEngine] = {}
    yield engines
    engines.clear()


@pytest.fixture
def make(folder: Path, made: dict[str, VllmEngine]) -> Make:
    """Engines of small models; the same model gives the same engine, with its weights of now."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(MISSING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from rlinf_graph.engines.vllm.engine import VllmEngine

    def engine(
        path: Path = folder, *, weights: str = "pretrained", head: str = "lm",
        dtype: str = "float32", trainable: bool = False, **options: Any,
    ) -> VllmEngine:  # fmt: skip
        settings = (str(path), weights, head, dtype, trainable, sorted(options))
        if repr(settings) not in made:
            made.clear()
            gc.collect()
            model = ModelDef("policy", str(path), head, dtype, weights)
            made[repr(settings)] = VllmEngine(
                model, seed=0, device="cpu", dtype=dtype, trainable=trainable, **options
            )
        return made[repr(settings)]

    return engine


@pytest.fixture
def engine(make: Make, folder: Path) -> VllmEngine:
    """The shared engine, with the weights that are in `folder`."""
    made = make()
    made.update_weights(read_model(folder).named_parameters())
    return made


@pytest.fixture
def path(folder: Path, tmp_path: Path) -> Path:
    """A copy of `folder`, to write new weights into."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def ask() -> Ask:
    def asked(*texts: Any, first: int = 0) -> Prompts:
        index = torch.arange(first, first + len(texts))
        columns = [{"truth": str(text)} for text in texts]
        return Prompts(index=index, group=index, prompts=list(texts), columns=columns)

    return asked
