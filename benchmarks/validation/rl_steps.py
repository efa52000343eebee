"""Whole RL iterations: rollout, log-probabilities, training, weight sync."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlinf_graph.compiler.cost import CostModel
from rlinf_graph.compiler.cost.constants import CONSTANTS
from rlinf_graph.compiler.cost.iteration_constants import IterationConstants
from rlinf_graph.compiler.cost.layout import Layout
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.graph import Graph, ModelDef, ModelUse, Node
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.plan import NodePlan
from rlinf_graph.ir.work import Forward, Generate, Lengths, Train
from rlinf_graph.nodes.lengths import log_normal
from validation.devices import cluster_of, device_named
from validation.fitting import Case
from validation.kind import Kind
from validation.pairs import judge_pairs
from validation.rl_layout import Setting, recipe_of, setting_of
from validation.rows import LeftOut, Row, canonical, shape_named, without_shape

PROMPT = 110
"""Tokens of a prompt where a row does not say; the published tables' own figure."""


class Narrow(CostModel):
    """Products of training in 8 bits, weights in 16."""

    def _new_layout(self, node: Node, place: Sequence[int], settings: NodePlan) -> Layout:
        layout = super()._new_layout(node, place, settings)
        return replace(layout, execution=replace(layout.execution, product="float8"))


@dataclass(frozen=True)
class Step:
    """An iteration as a row describes it.

    Attributes:
        model: hub name.
        cluster: its devices.
        setting: layouts, devices of each side, batch sizes.
        mean: response tokens.
    """

    model: str
    cluster: Cluster
    setting: Setting
    mean: float

    def costs(self, constants: IterationConstants) -> CostModel:
        """The cost model with other constants."""
        gpu = replace(CONSTANTS["gpu"], iteration=constants)
        trained, served = self.setting.dtypes
        models = ModelDef("m", self.model), ModelDef("served", self.model, dtype=served)
        graph = Graph("g", self._nodes(constants), models)
        constants_by_kind = {**CONSTANTS, "gpu": gpu}
        if trained == "float8":
            return Narrow(graph, self.cluster, constants=constants_by_kind)
        return CostModel(graph, self.cluster, constants=constants_by_kind)

    def _nodes(self, constants: IterationConstants) -> tuple[Node, ...]:
        made = self.setting
        limit = made.limit - PROMPT
        together = made.samples * (1 + made.depth)
        answers = log_normal(min(self.mean, 0.99 * limit), limit, constants.tail)
        responses = Lengths(answers, "published mean")
        whole = Lengths(tuple(PROMPT + a for a in answers), "published mean")
        return (
            _node("rollout", "served", Generate(together, PROMPT, responses, made.group)),
            _node("logprobs", "m", Forward(made.samples, whole)),
            _node("train", "m", Train(made.samples, whole, 1, made.optimizer_steps)),
        )

    def parts(self, constants: IterationConstants) -> dict[str, float]:
        """Seconds by what they are spent on.

        Samples that may be `depth` iterations old let the responses of as many more iterations be
        decoded together: each iteration gets its share of the time of all of them.
        """
        costs, made = self.costs(constants), self.setting
        rollout, logprobs, train = costs.graph.nodes
        sampled = costs.node(rollout, made.sampler, made.generation)
        passed = costs.node(logprobs, made.trainer, made.training)
        trained = costs.node(train, made.trainer, made.training)
        method = "broadcast" if made.depth else "copy"
        sync = costs.sync("m", made.trainer, made.sampler, method).seconds
        switched = sum(cost.load_s + cost.offload_s for cost in (trained, sampled))
        return {
            "rollout": sampled.seconds / (1 + made.depth),
            "logprobs": passed.seconds * made.passes,
            "train": trained.seconds,
            "sync": sync,
            "switch": 0.0 if made.depth else switched,
            "driver": constants.driver_s,
        }

    def seconds(self, constants: IterationConstants) -> float:
        """Of the steady state: the sum of all on shared devices, else the slower side."""
        parts = self.parts(constants)
        if not self.setting.depth:
            return sum(parts.values())
        learning = parts["logprobs"] + parts["train"]
        return max(parts["rollout"], learning) + parts["sync"] + parts["driver"]


def _node(name: str, model: str, work: Generate | Forward | Train) -> Node:
    use = (ModelUse("model", model, Port.TRAINED),)
    return Node(name, name, Role.COMPUTE, Unit.SAMPLE, models=use, work=work)


def cases(rows: Sequence[Row], recipes: Sequence[Row]) -> tuple[list[Case], list[LeftOut]]:
    """The rows with a step time, a mean length, a device type and count, and a known model."""
    made: list[Case] = []
    out: list[LeftOut] = []
    for row in rows:
        reason = _unusable(row)
        if reason:
            out.append(LeftOut(row, reason))
        else:
            made.append(_case(row, recipes))
    return _alike(made), out


def _alike(cases: Sequence[Case]) -> list[Case]:
    """Weights by which each model counts the same in a fit, however many rows it has."""
    rows = Counter(case.model for case in cases)
    each = len(cases) / max(1, len(rows))
    return [replace(case, weight=each / rows[case.model]) for case in cases]


def _unusable(row: Row) -> str | None:
    for column, what in (
        ("step_s", "no step time"),
        ("avg_len", "no average length"),
        ("gpu", "no device type"),
        ("n_gpus", "no device count"),
        ("model", "no model"),
    ):
        known = row.text(column)
        if column not in ("gpu", "model"):
            known = (row.number(column) or 0.0) > 0
        if not known:
            return what
    if reason := without_shape(row.text("model")):
        return reason
    if device_named(row.text("gpu")) is None:
        return f"unknown device {row.text('gpu')}"
    return "marked CHECK" if row.doubtful else None


def _case(row: Row, recipes: Sequence[Row]) -> Case:
    model, mean = canonical(row.text("model")), row.number("avg_len") or 0.0
    shape = shape_named(row.text("model"))
    assert shape is not None
    setting = setting_of(row, recipe_of(row, recipes), shape, PROMPT)
    cluster = cluster_of(row.text("gpu"), row.whole("n_gpus"))
    mode = f"asynchronous {setting.depth}" if setting.depth else "synchronous"
    return Case(
        row=row,
        model=model,
        what=f"{row.whole('n_gpus')} {row.text('gpu')} {mode}",
        measured=row.number("step_s") or 0.0,
        payload=Step(model, cluster, setting, mean),
        assumed=setting.assumed,
    )


def predict(case: Case, constants: Any) -> float:
    """Seconds of an iteration."""
    return case.payload.seconds(constants)


def kind(recipes: Sequence[Row]) -> Kind:
    """The kind, with the recipes that its rows were made with."""
    return Kind(
        name="rl_steps",
        unit="s",
        shipped=IterationConstants(),
        width=CONSTANTS["gpu"].widths.iteration,
        file="published_rl_steps.csv",
        cases=partial(cases, recipes=recipes),
        predict=predict,
        pairs=partial(judge_pairs, compared=CONSTANTS["gpu"].widths.compared),
    )
