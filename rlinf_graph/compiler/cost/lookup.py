"""From a model's path to its shape: the models that ship with the package, or a `config.json`."""

from __future__ import annotations

import difflib
import json
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from rlinf_graph.compiler.cost.mixer import Mixer
from rlinf_graph.compiler.cost.network import network_shape
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.cost.vision import Tower
from rlinf_graph.dsl.model import SMALL
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.ir.span import Span

CODE = "RG0404"
FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "qwen3_moe", "deepseek_v3")


@cache
def known_models() -> dict[str, ModelShape]:
    """Shapes by hub name, as they stand in `models.toml`."""
    text = resources.files("rlinf_graph.compiler.cost").joinpath("models.toml").read_text("utf-8")
    known: dict[str, ModelShape] = {}
    for fields in tomllib.loads(text).values():
        names, mixer = fields.pop("names"), fields.pop("mixer", None)
        towers = tuple(Tower(**tower) for tower in fields.pop("towers", ()))
        shape = ModelShape(**fields, mixer=Mixer(**mixer) if mixer else None, towers=towers)
        known |= dict.fromkeys(names, shape)
    return known


@cache
def _by_lower_name() -> dict[str, ModelShape]:
    """The same by lower-case name, with and without the organisation: mirrors keep the name."""
    known = known_models()
    bare = {name.lower().rpartition("/")[2]: shape for name, shape in known.items()}
    return bare | {name.lower(): shape for name, shape in known.items()}


def shape_of(model: ModelDef) -> ModelShape:
    """The shape of a model, without a network.

    Raises:
        CompileError: RG0404, for a hub name that is not known and for a folder whose
            `config.json` cannot be read.
    """
    if model.path.startswith(SMALL):
        return network_shape(model)
    config = Path(model.path) / "config.json"
    if config.is_file():
        return read_config(config, model.span)
    known = _by_lower_name()
    name = model.path.lower()
    found = known.get(name) or known.get(name.rpartition("/")[2])
    if found is None:
        raise fail(
            CODE,
            f"the shape of `{model.path}` is not known",
            model.span,
            notes=(_close_names(model.path),),
            help=("give a folder that holds the model's `config.json`",),
        )
    return found


def read_config(path: Path, span: Span | None = None) -> ModelShape:
    """The shape in a `config.json` of one of the known families.

    Raises:
        CompileError: RG0404, for another family or a missing field.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
        family = config.get("model_type")
        if family not in FAMILIES:
            known = f"known: {', '.join(FAMILIES)}"
            message = f"{path}: models of type `{family}` cannot be costed yet"
            raise fail(CODE, message, span, notes=(known,))
        return _shape(config, family)
    except KeyError as error:
        raise fail(CODE, f"{path} has no field {error}", span) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise fail(CODE, f"{path} is no model configuration: {error}", span) from None


def _shape(config: dict[str, Any], family: str) -> ModelShape:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    default_dim = 128 if family == "qwen3" else hidden // heads
    sizes: dict[str, Any] = {
        "layers": config["num_hidden_layers"],
        "hidden": hidden,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or default_dim,
        "intermediate": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "tied": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": family == "qwen2" or bool(config.get("attention_bias", False)),
        "qk_norm": family in ("qwen3", "qwen3_moe"),
    }
    if family == "qwen3_moe":
        sizes |= {
            # transformers 5 writes the second name.
            "experts": config.get("num_experts") or config["num_local_experts"],
            "experts_per_token": config["num_experts_per_tok"],
            "expert_intermediate": config["moe_intermediate_size"],
            "first_dense": _dense_layers(config),
        }
    if family == "deepseek_v3":
        sizes |= {
            "head_dim": config["qk_nope_head_dim"],
            "rope_head_dim": config["qk_rope_head_dim"],
            "value_head_dim": config["v_head_dim"],
            "q_rank": config["q_lora_rank"] or 0,
            "kv_rank": config["kv_lora_rank"],
            "experts": config["n_routed_experts"],
            "experts_per_token": config["num_experts_per_tok"],
            "expert_intermediate": config["moe_intermediate_size"],
            "shared_experts": config["n_shared_experts"],
            "first_dense": config["first_k_dense_replace"],
        }
    return ModelShape(**sizes)


def _dense_layers(config: dict[str, Any]) -> int:
    """Layers of a Qwen3 mixture that have no experts, wherever they stand."""
    every, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    layers = range(config["num_hidden_layers"])
    return sum(1 for i in layers if i in dense or (i + 1) % every)


def _close_names(path: str) -> str:
    known = known_models()
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(path.lower(), lower, n=3, cutoff=0.5)
    if close:
        return "close to it: " + ", ".join(lower[name] for name in close)
    return f"{len(known)} names are known, such as " + ", ".join(list(known)[:3])
