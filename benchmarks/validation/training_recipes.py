"""How the engine of a published training run worked, from its row and from what recipes say."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlinf_graph.compiler.cost.execution import Execution
from validation.devices import device_named
from validation.rows import DATA, Row, canonical

FORMATS = {"BF16": "", "MXFP8": "mxfp8", "FP8-MX": "mxfp8", "NVFP4": "nvfp4", "": ""}
"""Formats of products by what tables print; others with an 8 are scaled by tensor or row."""

FLASH_2 = 0.35 / 0.75
"""Rate of torch's attention, FlashAttention-2, in that of 3 on an H100 (Shah et al. 2024)."""


@dataclass(frozen=True)
class Recipe:
    """What a run did.

    Attributes:
        execution: of its passes.
        recompute: as in `NodePlan`.
        predicted: further tokens that were predicted, by a layer and a head each.
        sharded: whether data-parallel ranks held a part of the weights each.
    """

    execution: Execution
    recompute: Any
    predicted: int
    sharded: bool


def recipe_of(row: Row) -> Recipe:
    """From the row's columns and notes and the entries of `training_recipes.toml` that fit it."""
    said: dict[str, Any] = {}
    for entry in _entries():
        if _fits(entry, row):
            said |= entry
    notes, torch = row.text("notes"), row.text("source") == "torchtitan"
    execution = Execution(
        product=product_of(row),
        graphs=said.get("graphs", 0.0),
        fused=not torch or "compile" in notes,
        fused_experts=said.get("fused_experts", False),
        dispatch=said.get("dispatch", "once"),
        tensor_beside=not torch or "async TP" in notes,
        experts_beside=said.get("experts_beside", False),
        kernels=FLASH_2 if torch else 1.0,
    )
    sharded = torch or row.whole("fsdp", 0) > 1
    return Recipe(execution, said.get("recompute", False), said.get("predicted", 0), sharded)


def product_of(row: Row) -> str:
    """The number format of a row's products."""
    spelled = row.text("precision").upper()
    return FORMATS.get(spelled, "float8" if "8" in spelled else "")


@cache
def _entries() -> list[dict[str, Any]]:
    return tomllib.loads((DATA / "training_recipes.toml").read_text("utf-8"))["recipe"]


def _fits(entry: dict[str, Any], row: Row) -> bool:
    device = device_named(row.text("gpu"))
    found = {
        "models": canonical(row.text("model")),
        "devices": device.device.name.partition("-")[0] if device else "",
        "formats": product_of(row),
        "stages": row.whole("pp"),
    }
    if entry["source"] != row.text("source"):
        return False
    if any(value not in entry.get(name, (value,)) for name, value in found.items()):
        return False
    if entry.get("notes", "") not in row.text("model") + " " + row.text("notes"):
        return False
    made = re.search(r"([\d.]+) NeMo Container", row.text("notes"))
    release = made[1] if made else ""
    return entry.get("since", "") <= release <= entry.get("until", "99")
