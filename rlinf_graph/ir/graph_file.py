"""The JSON form of a graph, and the hash of what it means."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

from rlinf_graph.ir.batch import Source
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.graph import EnvDef, Graph, Input, Loop, ModelDef, ModelUse, Node
from rlinf_graph.ir.node_type import Port, Role, Unit
from rlinf_graph.ir.value import from_json, to_json

FORMAT = 1


def digest(graph: Graph) -> str:
    """A hash of what the graph means: independent of line numbers and of where it lies."""
    meaning = json.dumps(_without_files(_meaning(graph)), sort_keys=True)
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def dumps(graph: Graph) -> str:
    """The graph as JSON text."""
    data = _meaning(graph) | {"format": FORMAT, "file": graph.file}
    return json.dumps(data, indent=1)


def loads(text: str) -> Graph:
    """The graph that `dumps` wrote; its types are not verified yet.

    Raises:
        CompileError: RG0201, for text that is no saved graph.
    """
    try:
        data = _parsed(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
        return _read(data)
    except (KeyError, TypeError, ValueError) as error:
        raise fail("RG0201", f"this is not a saved graph: {error}") from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:  # its own text counts characters of other lines, too
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{error.msg}, {where}") from None


def _meaning(graph: Graph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "parameters": {k: to_json(v) for k, v in graph.parameters},
        "pins": dict(graph.pins),
        "models": [
            {"name": m.name, "path": m.path, "head": m.head, "dtype": m.dtype}
            | {"weights": m.weights, "engines": dict(m.engines)}
            | ({"env": m.env} if m.env else {})
            for m in graph.models
        ],
        **({"envs": [_env_meaning(env) for env in graph.envs]} if graph.envs else {}),
        "nodes": [_node_meaning(node) for node in graph.nodes],
    }


def _without_files(data: Any) -> Any:
    """A function counts by its name and source, not by where its file lies."""
    if isinstance(data, list):
        return [_without_files(item) for item in cast("list[Any]", data)]
    if isinstance(data, dict):
        fields = cast("dict[str, Any]", data)
        dropped = {"file"} if "$function" in fields else set[str]()
        return {k: _without_files(v) for k, v in fields.items() if k not in dropped}
    return data


def _env_meaning(env: EnvDef) -> dict[str, Any]:
    return {
        "name": env.name,
        "path": to_json(env.path),
        "count": env.count,
        "engine": env.engine,
        "options": {k: to_json(v) for k, v in env.options},
        "normalize": env.normalize,
    }


def _read_env(data: dict[str, Any]) -> EnvDef:
    fields: dict[str, Any] = {"path": from_json(data["path"])}
    fields["options"] = tuple((k, from_json(v)) for k, v in data["options"].items())
    return EnvDef(**(data | fields))


def _source_meaning(source: Source) -> list[Any]:
    return [source.node, source.output, list(source.field)]


def _read_source(data: list[Any]) -> Source:
    return Source(data[0], data[1], tuple(data[2]))


def _loop_meaning(loop: Loop) -> dict[str, Any]:
    return {
        "carried": _source_meaning(loop.carried),
        "emitted": [_source_meaning(source) for source in loop.emitted],
        "length": loop.length,
        "until": loop.until,
        "expected": loop.expected,
    }


def _read_loop(data: dict[str, Any]) -> Loop:
    fields: dict[str, Any] = {"carried": _read_source(data["carried"])}
    fields["emitted"] = tuple(_read_source(source) for source in data["emitted"])
    return Loop(**(data | fields))


def _node_meaning(node: Node) -> dict[str, Any]:
    region: dict[str, Any] = {"region": node.region} if node.region else {}
    if node.loop is not None:
        region["loop"] = _loop_meaning(node.loop)
    if node.envs:
        region["envs"] = [list(pair) for pair in node.envs]
    return region | {
        "name": node.name,
        "type": node.type,
        "role": node.role.value,
        "unit": node.unit.value,
        "inputs": [
            {
                "param": i.param,
                "node": i.source.node,
                "output": i.source.output,
                "field": list(i.source.field),
                "type": i.type,
                **({"lag": i.lag} if i.lag else {}),
            }
            for i in node.inputs
        ],
        "models": [
            [u.param, u.model, u.port.value, *([u.served, u.decay] if u.served else [])]
            for u in node.models
        ],
        "options": {k: to_json(v) for k, v in node.options},
        "outputs": list(node.outputs),
    }


def _read(data: dict[str, Any]) -> Graph:
    return Graph(
        name=data["name"],
        nodes=tuple(_read_node(n) for n in data["nodes"]),
        models=tuple(
            ModelDef(**(m | {"engines": tuple(m["engines"].items())})) for m in data["models"]
        ),
        envs=tuple(_read_env(env) for env in data.get("envs", ())),
        file=data["file"],
        parameters=tuple((k, from_json(v)) for k, v in data["parameters"].items()),
        pins=tuple(data["pins"].items()),
    )


def _read_node(data: dict[str, Any]) -> Node:
    return Node(
        name=data["name"],
        type=data["type"],
        role=Role(data["role"]),
        unit=Unit(data["unit"]),
        inputs=tuple(
            Input(
                i["param"],
                _read_source([i["node"], i["output"], i["field"]]),
                i["type"],
                i.get("lag", 0),
            )
            for i in data["inputs"]
        ),
        models=tuple(ModelUse(p, m, Port(port), *named) for p, m, port, *named in data["models"]),
        options=tuple((k, from_json(v)) for k, v in data["options"].items()),
        outputs=tuple(data["outputs"]),
        envs=tuple((param, env) for param, env in data.get("envs", ())),
        region=data.get("region", ""),
        loop=_read_loop(data["loop"]) if "loop" in data else None,
    )
