"""Folders in the format of transformers: read by rectangles, written weight by weight."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlinf_graph.engines.megatron.conversion import Piece
from rlinf_graph.engines.torch.weights import HEAD_FILE
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
FILE_BYTES = 4 << 30
"""Of one written file, about; what the writing process holds in memory."""


class Checkpoint:
    """A model's weights on disk, of which only what is asked for is read.

    Args:
        model: its `path` is a folder, or a hub name, which is downloaded.

    Attributes:
        folder: where it lies.
        generation: what its `generation_config.json` says, such as the tokens that end an answer.

    Raises:
        CompileError: RG0503, for a folder without weights in safetensors files.
    """

    def __init__(self, model: ModelDef) -> None:
        self._model = model
        self.folder = _folder(model)
        generation = self.folder / GENERATION
        self.generation = generation.read_text("utf-8") if generation.is_file() else None
        self._files = self._where()
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a weight of this name, as `Shard` names it."""
        return any(key in self._files for key in _names(name))

    def read(self, piece: Piece) -> Tensor:
        """The rectangle, in the type that it is stored in.

        Raises:
            CompileError: RG0503, for a weight that is not there or has another shape.
        """
        key = next((key for key in _names(piece.name) if key in self._files), None)
        if key is None:
            raise self._refusal(f"lacks the weight `{piece.name}`")
        try:
            held = self._file(self._files[key]).get_slice(_stored(key))
            if tuple(held.get_shape()) != piece.shape:
                raise self._refusal(
                    f"has `{key}` of shape {held.get_shape()}, not {list(piece.shape)}"
                )
            spans = zip(piece.offsets, piece.size, strict=True)
            return held[tuple(slice(start, start + size) for start, size in spans)]
        except SafetensorError as error:
            raise self._refusal(f"cannot be read at `{key}`: {error}") from None

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, "pt"))
        return self._open[path]

    def _where(self) -> dict[str, Path]:
        folder, found = self.folder, {}
        if (folder / INDEX).is_file():
            names = json.loads((folder / INDEX).read_text())["weight_map"]
            found = {name: folder / file for name, file in names.items()}
        elif (folder / ONE).is_file():
            with safe_open(folder / ONE, "pt") as held:
                found = {name: folder / ONE for name in held.keys()}  # noqa: SIM118  no mapping
        if not found:
            raise self._refusal(f"has neither {ONE} nor {INDEX}")
        if (folder / HEAD_FILE).is_file():
            found["head.weight"] = folder / HEAD_FILE
        return found

    def _refusal(self, what: str) -> Exception:
        return fail(
            "RG0503",
            f"the checkpoint of `{self._model.name}` {what}: {self._model.path}",
            self._model.span,
            help=("name a folder that save_pretrained of transformers wrote",),
        )


def write(
    folder: Path, weights: Iterable[tuple[str, Tensor]], config: Any, generation: str | None
) -> None:
    """Write weights, on the CPU, and a configuration; those of a `value` head apart.

    Args:
        folder: is made.
        weights: named as in `Shard`, one after another.
        config: of transformers.
        generation: as in `Checkpoint`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    if generation is not None:
        (folder / GENERATION).write_text(generation, "utf-8")
    files: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        files.append(list(held))
        save_file(held, folder / f"part-{len(files)}", metadata={"format": "pt"})
        held.clear()

    for name, value in weights:
        if name == "head.weight":
            save_file({"weight": value.contiguous()}, folder / HEAD_FILE)
            continue
        if held and size + value.nbytes > FILE_BYTES:
            flush()
            size = 0
        held[name.removeprefix("backbone.")] = value.contiguous()
        size, total = size + value.nbytes, total + value.nbytes
    flush()
    _name_files(folder, files, total)


def _name_files(folder: Path, files: list[list[str]], total: int) -> None:
    for old in (*folder.glob("model*.safetensors"), folder / INDEX):
        old.unlink(missing_ok=True)
    if len(files) == 1:
        (folder / "part-1").rename(folder / ONE)
        return
    named: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        named |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": named}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _folder(model: ModelDef) -> Path:
    folder = Path(model.path)
    if folder.is_dir():
        return folder
    patterns = ["*.safetensors", INDEX, "*.json", "*.txt", "*.model"]
    return Path(snapshot_download(model.path, allow_patterns=patterns))


def _names(name: str) -> tuple[str, ...]:
    """As a checkpoint of a causal model and one of its backbone alone name a weight."""
    for prefix in ("model.", "backbone."):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return f"model.{rest}", rest
    return (name,)


def _stored(key: str) -> str:
    return "weight" if key == "head.weight" else key
