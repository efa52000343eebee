"""Models and tokenizers from the hub or a folder, with errors that say what to change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlinf_graph.engines.torch.heads import Scalar, head_dtype, new_head
from rlinf_graph.engines.torch.network import Network, is_small, load_network
from rlinf_graph.engines.torch.noise import stream
from rlinf_graph.engines.torch.quiet import quiet
from rlinf_graph.engines.torch.text import Text
from rlinf_graph.engines.torch.weights import HEAD_FILE
from rlinf_graph.ir.diagnostic import CompileError, fail
from rlinf_graph.ir.graph import ModelDef

Made = TypeVar("Made")

REFUSALS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises for files that are missing, unreadable or of another kind."""

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
LOCAL_HELP = "check the files of that folder, and that transformers knows its architecture"
HUB_HELP = (
    "check the name; set HF_TOKEN for a gated model; without a network, download the model "
    "elsewhere and give its folder"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.spm", "*.tiktoken", "tekken*")


def load(
    model: ModelDef, seed: int, dtype: torch.dtype
) -> tuple[PreTrainedModel | Scalar | Network, Text | None]:
    """A model and its tokenizer, as `load_model` and `load_text` say; cheap checks come first.

    A small network reads no text.
    """
    if is_small(model.path):
        return load_network(model, seed, dtype), None
    _check_folder(model)
    text = load_text(model)
    return load_model(model, seed, dtype), text


def load_model(model: ModelDef, seed: int, dtype: torch.dtype) -> PreTrainedModel | Scalar:
    """The model on the CPU, in evaluation mode: dropout is off in training too.

    Returns:
        transformers' causal language model for head `lm`, a `Scalar` for `value` and `score`.

    Raises:
        CompileError: RG0503, for what cannot be found, read or built.
    """
    with _explained(model, "cannot be loaded"), quiet():
        config = AutoConfig.from_pretrained(model.path)
        if model.weights == "random":
            made = _random(model, config, seed, dtype)
        else:
            made = _pretrained(model, config, seed, dtype)
    return made.eval()


def load_text(model: ModelDef) -> Text | None:
    """The model's tokenizer; None for a `value` head without one, which reads tokens only.

    Responses end with the tokenizer's end token and with those of `generation_config.json`.

    Raises:
        CompileError: RG0503, for a tokenizer that is missing or cannot be read.
    """
    folder = Path(model.path)
    if folder.is_dir() and not _has(folder, TOKENIZER_FILES):
        if model.head == "value":
            return None
        raise fail(
            "RG0503",
            f"`{model.name}` has no tokenizer: {model.path} has none of "
            + ", ".join(TOKENIZER_FILES),
            model.span,
            help=("save it there: AutoTokenizer.from_pretrained(…).save_pretrained(folder)",),
        )
    with _explained(model, "has a tokenizer that cannot be loaded"), quiet():
        tokenizer = _tokenizer_class(folder).from_pretrained(model.path)
    ends = [tokenizer.eos_token_id, *_generation_ends(model.path)]
    return Text(model.name, tokenizer, tuple(dict.fromkeys(e for e in ends if e is not None)))


def _tokenizer_class(folder: Path) -> Any:
    """The class that reads `tokenizer.json` as it is, for a folder that says so.

    AutoTokenizer of transformers 5.19 goes by the model's architecture for some: in a `qwen2`
    folder it keeps the vocabulary of `tokenizer.json` and cuts texts as Qwen's tokenizer does.
    """
    settings = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not settings.is_file():
        return AutoTokenizer
    named = json.loads(settings.read_text()).get("tokenizer_class")
    generic = named in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return PreTrainedTokenizerFast if generic else AutoTokenizer


def _random(
    model: ModelDef, config: PretrainedConfig, seed: int, dtype: torch.dtype
) -> PreTrainedModel | Scalar:
    """New weights, drawn in float32 on the CPU whatever the model's type and device will be."""
    kind: Any = AutoModelForCausalLM if model.head == "lm" else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, model.name))
        made = kind.from_config(config, dtype=torch.float32)
    for param in made.parameters():  # not the buffers: rotary frequencies stay in float32
        param.data = param.data.to(dtype)
    made.config.dtype = dtype
    if model.head == "lm":
        return made
    size = config.get_text_config().hidden_size
    return Scalar(made, new_head(model.head, size, dtype, seed, model.name))


def _pretrained(
    model: ModelDef, config: PretrainedConfig, seed: int, dtype: torch.dtype
) -> PreTrainedModel | Scalar:
    if model.head == "lm":
        return _complete(model, AutoModelForCausalLM, dtype)
    saved = Path(model.path, HEAD_FILE)
    classifier = any("SequenceClassification" in name for name in config.architectures or ())
    if model.head == "score" and classifier and not saved.is_file():
        whole: Any = _complete(model, AutoModelForSequenceClassification, dtype, num_labels=1)
        return Scalar(whole.base_model, whole.score.to(head_dtype(dtype)))
    if model.head == "score" and not saved.is_file():
        raise fail(
            "RG0503",
            f"`{model.name}` is no reward model: {model.path} has no weights for head `score`",
            model.span,
            help=("name a checkpoint of a sequence classifier with one label",),
        )
    backbone = _complete(model, AutoModel, dtype)
    size = config.get_text_config().hidden_size
    head = new_head(model.head, size, dtype, seed, model.name)
    if saved.is_file():
        head.load_state_dict(load_file(saved))
    return Scalar(backbone, head)


def _complete(model: ModelDef, kind: Any, dtype: torch.dtype, **options: Any) -> Any:
    """A checkpoint, none of whose weights are missing: transformers would invent them."""
    made, found = kind.from_pretrained(model.path, dtype=dtype, output_loading_info=True, **options)
    missing = sorted(found["missing_keys"])
    if missing:
        raise fail(
            "RG0503",
            f"the checkpoint of `{model.name}` lacks {len(missing)} weights of "
            f"{type(made).__name__}, such as `{missing[0]}`",
            model.span,
            help=(f'name another checkpoint than {model.path}, or start with weights="random"',),
        )
    return made


def _check_folder(model: ModelDef) -> None:
    """Say of a local path what transformers would say of a hub name."""
    folder = Path(model.path)
    meant = model.path.startswith((".", "/", "~")) or model.path.count("/") > 1
    if not folder.is_dir():
        if meant:
            raise fail(
                "RG0503",
                f"`{model.name}`: there is no folder {model.path}",
                model.span,
                help=("give the path of a folder with config.json, or a hub name",),
            )
        return
    if not (folder / "config.json").is_file():
        raise fail(
            "RG0503",
            f"`{model.name}`: {model.path} has no config.json",
            model.span,
            help=("name the folder that save_pretrained wrote",),
        )
    if model.weights == "pretrained" and not _has(folder, WEIGHT_FILES):
        raise fail(
            "RG0503",
            f"`{model.name}`: {model.path} has no weights",
            model.span,
            notes=("looked for " + ", ".join(WEIGHT_FILES),),
            help=(f'start with new ones: rl.Model("{model.path}", weights="random")',),
        )


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(path.name != HEAD_FILE for p in patterns for path in folder.glob(p))


def _generation_ends(path: str) -> list[int]:
    """End tokens that the model's own generation settings name."""
    try:
        with quiet():
            ends = GenerationConfig.from_pretrained(path).eos_token_id
    except REFUSALS:
        return []
    return ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else []


@contextmanager
def _explained(model: ModelDef, what: str) -> Iterator[None]:
    """Turn what transformers raises into a diagnostic with its first line."""
    try:
        yield
    except CompileError:
        raise
    except REFUSALS as error:
        said = next(iter(str(error).strip().splitlines()), "")
        raise fail(
            "RG0503",
            f"`{model.name}` {what}: {model.path}",
            model.span,
            notes=(f"{type(error).__name__}: {said}",),
            help=(LOCAL_HELP if Path(model.path).is_dir() else HUB_HELP,),
        ) from None
