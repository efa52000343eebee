"""Whether a value can be what an annotation asks for."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast


def fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the annotated type; true where the annotation says nothing we know.

    An int is a float, a list is a tuple; a bool is neither an int nor a float.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is Callable:
        return callable(value)
    if origin in (tuple, list, Sequence):
        return isinstance(value, tuple | list) and _items_fit(
            cast("Sequence[Any]", value), arguments
        )
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if annotation is None or annotation is types.NoneType:
        return value is None
    return _is_a(value, annotation) if isinstance(annotation, type) else True


def misfit(value: Any) -> tuple[str, Any, Any] | None:
    """The first field of a struct that is not of its type: name, annotation and value."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    try:
        annotations = typing.get_type_hints(type(value))
    except NameError:
        return None
    for field in dataclasses.fields(value):
        given, wanted = getattr(value, field.name), annotations.get(field.name)
        if given is not field.default and not fits(given, wanted):
            return field.name, field.type, given
    return None


def _items_fit(value: Sequence[Any], arguments: tuple[Any, ...]) -> bool:
    """Items of a list, of `tuple[T, ...]`, or of a tuple with a type for each place."""
    if not arguments:
        return True
    if len(arguments) == 1 or arguments[1:] == (Ellipsis,):
        return all(fits(item, arguments[0]) for item in value)
    pairs = zip(value, arguments, strict=False)
    return len(value) == len(arguments) and all(fits(item, kind) for item, kind in pairs)


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float):
        number = int if kind is int else int | float
        return isinstance(value, number) and not isinstance(value, bool)
    if getattr(kind, "_is_protocol", False):
        members: set[str] = getattr(kind, "__protocol_attrs__", None) or _members(kind)
        return not isinstance(value, type) and all(hasattr(value, name) for name in members)
    return isinstance(value, tuple | list) if kind is tuple else isinstance(value, kind)


def _members(protocol: type) -> set[str]:
    """What a protocol asks for; Python 3.12 keeps the names ready."""
    own = {n for base in protocol.__mro__ if base is not object for n in vars(base)}
    return {n for n in own if not n.startswith("_")}
