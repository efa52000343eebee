"""Tiny models, made here: a char-level tokenizer and configurations of a few thousand weights."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.batches import Prompts
from rlinf_graph.ir.graph import ModelDef

CHARACTERS = "0123456789+-= abc"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # far from uniform, so that a wrong probability shows
}


def write_model(folder: Path, model_type: str = "qwen2", **settings: Any) -> Path:
    folder.mkdir()
    names = ["<pad>", "<bos>", "<eos>", *CHARACTERS]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    wrapped.save_pretrained(folder)
    config = {"model_type": model_type, "vocab_size": len(names), **SIZES, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than these models on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture
def make(folder: Path) -> Callable[..., TorchEngine]:
    def made(
        head: str = "lm",
        *,
        path: Path = folder,
        name: str = "policy",
        weights: str = "random",
        dtype: str = "float64",
        seed: int = 0,
        trainable: bool = False,
    ) -> TorchEngine:
        definition = ModelDef(name, str(path), head, dtype, weights)
        return TorchEngine(definition, seed=seed, device="cpu", dtype=dtype, trainable=trainable)

    return made


@pytest.fixture
def ask() -> Callable[..., Prompts]:
    def asked(*texts: Any, first: int = 0) -> Prompts:
        index = torch.arange(first, first + len(texts))
        columns = [{"truth": str(text)} for text in texts]
        return Prompts(index=index, group=index, prompts=list(texts), columns=columns)

    return asked
