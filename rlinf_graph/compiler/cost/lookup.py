"""From a model's path to its shape: the models that ship with the package, or a `config.json`."""

from __future__ import annotations

import difflib
import json
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path

from rlinf_graph.compiler.cost.configs import FAMILIES, shape_of_config
from rlinf_graph.compiler.cost.mixer import Mixer
from rlinf_graph.compiler.cost.network import network_shape
from rlinf_graph.compiler.cost.shapes import ModelShape
from rlinf_graph.compiler.cost.vision import Tower
from rlinf_graph.dsl.model import SMALL
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import ModelDef
from rlinf_graph.ir.span import Span

CODE = "RG0404"


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
        return shape_of_config(config)
    except KeyError as error:
        raise fail(CODE, f"{path} has no field {error}", span) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise fail(CODE, f"{path} is no model configuration: {error}", span) from None


def _close_names(path: str) -> str:
    known = known_models()
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(path.lower(), lower, n=3, cutoff=0.5)
    if close:
        return "close to it: " + ", ".join(lower[name] for name in close)
    return f"{len(known)} names are known, such as " + ", ".join(list(known)[:3])
