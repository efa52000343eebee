"""What a node's option may hold, and its JSON form.

Options are plain values (None, bool, int, float, str), tuples of values, string-keyed mappings,
references to functions, and *structs*: frozen dataclasses such as a loss or an optimizer, which
register themselves here by name so that a saved graph can name them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, dataclass_transform

from rlinf_graph.ir.diagnostic import fail, suggest

Value = Any
StructClass = TypeVar("StructClass", bound=type)

_structs: dict[str, type] = {}


@dataclasses.dataclass(frozen=True)
class FunctionRef:
    """A user's function by the file and the name it was defined with.

    `digest` is taken from its source, so that a changed reward changes the graph's hash.
    """

    file: str
    name: str
    digest: str
    function: Callable[..., Any] | None = dataclasses.field(
        default=None, compare=False, repr=False, hash=False
    )

    @classmethod
    def of(cls, function: Callable[..., Any]) -> FunctionRef:
        """Refer to `function`; a built-in or C function is digested by its name."""
        try:
            source = inspect.getsource(function)
            file = inspect.getsourcefile(function) or "?"
        except (OSError, TypeError):
            source, file = repr(function), "?"
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        return cls(file, getattr(function, "__qualname__", repr(function)), digest, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Raises:
            CompileError: RG0502, for a reference that was loaded from JSON and not bound.
        """
        if self.function is None:
            raise fail(
                "RG0502",
                f"function `{self.name}` of {self.file} is not loaded here",
                help=("run the pipeline from its file: rlinf-graph run FILE --plan PLAN",),
            )
        return self.function(*args, **kwargs)


@dataclass_transform(frozen_default=True)
def struct(cls: StructClass) -> StructClass:
    """Class decorator: a frozen dataclass that may stand in an option."""
    made = cast(StructClass, dataclasses.dataclass(frozen=True)(cls))
    _structs[made.__name__] = made
    return made


def to_json(value: Value) -> Any:
    """The JSON form of an option's value.

    Raises:
        TypeError: for a value that no option may hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, FunctionRef):
        return {"$function": value.name, "file": value.file, "digest": value.digest}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$struct": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_json(v) for v in cast("tuple[Value, ...]", value)]
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in cast("Mapping[str, Value]", value).items()}
    raise TypeError(f"{type(value).__name__} {value!r} cannot be an option's value")


def from_json(data: Any) -> Value:
    """The value that `to_json` wrote.

    Raises:
        CompileError: RG0501, for a struct that nothing registered.
    """
    if isinstance(data, list):
        return tuple(from_json(v) for v in cast("list[Any]", data))
    if not isinstance(data, dict):
        return data
    fields = cast("dict[str, Any]", data)
    if "$function" in fields:
        return FunctionRef(fields["file"], fields["$function"], fields["digest"])
    if "$struct" in fields:
        name = fields["$struct"]
        if name not in _structs:
            message = f"the saved graph uses `{name}`, which is not known here"
            raise fail("RG0501", message, help=(suggest(name, _structs),))
        made = {k: from_json(v) for k, v in fields.items() if k != "$struct"}
        return _structs[name](**made)
    return {k: from_json(v) for k, v in fields.items()}


def freeze(value: Value) -> Value:
    """Make an option's value immutable and comparable: lists to tuples, functions to references."""
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in cast("tuple[Value, ...]", value))
    if callable(value) and not dataclasses.is_dataclass(value):
        return value if isinstance(value, FunctionRef) else FunctionRef.of(value)
    return value
