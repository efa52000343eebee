"""What of the user's code has to travel to the workers, and how."""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any, cast

from ray import cloudpickle

from rlinf_graph.dsl.node import NodeDefinition, definitions
from rlinf_graph.ir.graph import Graph
from rlinf_graph.ir.value import FunctionRef

_REGISTERING = threading.Lock()
_blocks = Counter[str]()
"""Open blocks of `whole` by the modules' names."""


def used_definitions(graph: Graph) -> dict[str, NodeDefinition]:
    """The definitions of the graph's node types that workers cannot import."""
    used = {node.type: definitions[node.type] for node in graph.nodes}
    return {k: d for k, d in used.items() if not d.kernel.__module__.startswith("rlinf_graph.")}


def by_value(graph: Graph) -> AbstractContextManager[None]:
    """Inside the block, functions of modules that are no installed packages are sent whole."""
    return whole(_modules(graph))


@contextmanager
def whole(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Inside the block, what these modules define is pickled whole, unless they are installed.

    Blocks of several threads may overlap; what somebody else had registered stays so.
    """
    ours: list[ModuleType] = []
    try:
        with _REGISTERING:
            known = cloudpickle.list_registry_pickle_by_value() - set(_blocks)
            for module in modules:
                if not installed(module) and module.__name__ not in known:
                    cloudpickle.register_pickle_by_value(module)
                    _blocks[module.__name__] += 1
                    ours.append(module)
        yield
    finally:
        with _REGISTERING:
            for module in ours:
                _blocks[module.__name__] -= 1
                if not _blocks[module.__name__]:
                    del _blocks[module.__name__]
                    cloudpickle.unregister_pickle_by_value(module)


def _modules(graph: Graph) -> list[ModuleType]:
    names = {d.kernel.__module__ for d in used_definitions(graph).values()}
    for node in graph.nodes:
        for _name, value in node.options:
            names |= {function.__module__ for function in _functions(value)}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]


def _functions(value: Any) -> Iterator[Callable[..., Any]]:
    """The functions in an option: one, or a mapping of them such as a dialog's tools."""
    if isinstance(value, FunctionRef) and value.function is not None:
        yield value.function
    if isinstance(value, Mapping):
        for inner in cast("Mapping[str, Any]", value).values():
            yield from _functions(inner)


def installed(module: ModuleType) -> bool:
    """Whether workers find the module too: it is built in, or lies with the packages."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.startswith("rlinf_graph."):
        return True
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(file.startswith(root) for root in roots)
