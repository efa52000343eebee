"""What an edge carries: typed records of samples, symbolic while a pipeline is being built.

A batch holds `n` samples. Each field says along what it runs: `per_sample()` fields are tensors of
shape `(n, ...)`; `per_token()` fields are packed, shape `(sum(lengths) + extra * n, ...)`, the
samples one after another without padding; `objects()` fields are lists of `n` Python values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Self,
    TypeVar,
    cast,
    dataclass_transform,
    overload,
)

from rlinf_graph.ir.diagnostic import fail, suggest
from rlinf_graph.ir.span import Span, caller

if TYPE_CHECKING:
    from torch import Tensor

B = TypeVar("B", bound="Carried")
P = TypeVar("P", bound="Carried")


class Granularity(StrEnum):
    """What one value of a batch type belongs to."""

    SAMPLE = "sample"
    TOKEN = "token"
    STEP = "step"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from: an output of a node, or a field of that output."""

    node: str
    output: int = 0
    field: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`node`, `node.1` for a second output, `node.field` for a projection."""
        output = f".{self.output}" if self.output else ""
        return self.node + output + "".join(f".{name}" for name in self.field)


def per_sample() -> Any:
    """A tensor field of shape `(n, ...)`."""
    return dataclasses.field(metadata={"axis": "sample"})


def per_token(extra: int = 0) -> Any:
    """A packed tensor field of shape `(sum(lengths) + extra * n, ...)`."""
    return dataclasses.field(metadata={"axis": "token", "extra": extra})


def objects() -> Any:
    """A field that holds one Python value a sample."""
    return dataclasses.field(metadata={"axis": "object"})


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    eq_default=False,
    field_specifiers=(per_sample, per_token, objects),
)
class Carried:
    """Anything an edge can carry. Instances without values are symbols of a pipeline."""

    granularity: ClassVar[Granularity] = Granularity.NONE
    types: ClassVar[dict[str, type[Carried]]] = {}

    def __init_subclass__(cls, granularity: Granularity | None = None) -> None:
        """Make the subclass a frozen dataclass and register it by name."""
        dataclasses.dataclass(frozen=True, eq=False, kw_only=True)(cls)
        if granularity is not None:
            cls.granularity = granularity
        Carried.types[cls.__name__] = cls

    @classmethod
    def symbol(cls, source: Source) -> Self:
        """A stand-in for the value that `source` will produce when the pipeline runs."""
        made = object.__new__(cls)
        object.__setattr__(made, "_source", source)
        return made

    @classmethod
    def late(cls, make: Callable[[str], Any]) -> Self:
        """A batch of values whose fields `make` gives, by name, when they are first read."""
        made = object.__new__(cls)
        object.__setattr__(made, "_make", make)
        return made

    @property
    def source(self) -> Source | None:
        """The source of a symbol; None for a batch of values."""
        return self.__dict__.get("_source")

    if not TYPE_CHECKING:  # a checker knows the fields, and reports any other name

        def __getattr__(self, name: str) -> Any:
            """A symbol's field: a typed projection, or a value that is pending. Or a late field."""
            if "_make" in self.__dict__ and name in type(self).__dataclass_fields__:
                object.__setattr__(self, name, self.__dict__["_make"](name))
                return self.__dict__[name]
            source = cast("Source | None", self.__dict__.get("_source"))
            if source is None or name not in {f.name for f in dataclasses.fields(self)}:
                known = suggest(name, (f.name for f in dataclasses.fields(self)))
                raise AttributeError(f"{type(self).__name__} has no field `{name}`; {known}")
            deeper = Source(source.node, source.output, (*source.field, name))
            carried = self.field_types().get(name)
            return carried.symbol(deeper) if carried else Pending(f"{type(self).__name__}.{name}")

    @classmethod
    def field_types(cls) -> dict[str, type[Carried]]:
        """The fields and projections that are batches themselves, with their types."""
        annotations = {f.name: str(f.type) for f in dataclasses.fields(cast("Any", cls))}
        for name, member in ((n, m) for c in cls.__mro__ for n, m in vars(c).items()):
            if isinstance(member, projection):
                annotations[name] = cast("projection[Any, Any]", member).kind
        known = Carried.types
        return {name: known[kind] for name, kind in annotations.items() if kind in known}

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Its own name and those of the batch types that it refines."""
        return tuple(c.__name__ for c in cls.__mro__ if c.__name__ in Carried.types)

    def __bool__(self) -> bool:
        """A batch of values is true; a symbol has no truth yet."""
        if self.source is not None:
            raise _branched(type(self).__name__, caller())
        return True


class projection(Generic[B, P]):
    """A part of a batch that is a batch itself: `episode.rewards` is an edge of its own.

    Decorates a method that makes the part of a batch of values; of a symbol it makes a symbol.
    """

    def __init__(self, make: Callable[[B], P]) -> None:
        """`make` is annotated with the name of the part's type."""
        self.make = make
        self.kind = str(make.__annotations__["return"])
        self.__doc__ = make.__doc__

    def __set_name__(self, _owner: type, name: str) -> None:
        """The name of the attribute."""
        self.name = name

    @overload
    def __get__(self, batch: None, owner: type) -> projection[B, P]: ...
    @overload
    def __get__(self, batch: B, owner: type) -> P: ...
    def __get__(self, batch: B | None, owner: type) -> Any:
        """The part, or the symbol of it."""
        if batch is None:
            return self
        source = batch.source
        if source is None:
            return self.make(batch)
        deeper = Source(source.node, source.output, (*source.field, self.name))
        return Carried.types[self.kind].symbol(deeper)


class Pending:
    """A tensor that is not computed yet: it can be named, and nothing else."""

    def __init__(self, what: str) -> None:
        """`what` names it in messages."""
        self.what = what

    def __getattr__(self, name: str) -> Pending:
        """An attribute of a pending value is pending."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Pending(f"{self.what}.{name}")

    def __call__(self, *_args: object, **_kwargs: object) -> Pending:
        """A call on a pending value is pending."""
        return Pending(f"{self.what}()")


def _branched(what: str, frame: FrameType) -> Exception:
    return fail(
        "RG0103",
        f"Python needs the value of `{what}`, which is not computed yet",
        Span.of_frame(frame),
        label="decided here, before the first iteration runs",
        notes=("a pipeline is built once; its batches have values only while it runs",),
        help=(
            "decide inside a node: @rl.node above a function from batches to a batch",
            "to choose before the run, give the pipeline a parameter: --set name=value",
        ),
    )


def _refuse(name: str) -> Callable[..., Any]:
    def method(self: Pending, *_args: object) -> Any:
        raise _branched(self.what, caller())

    method.__name__ = name
    return method


def _stay_pending(name: str) -> Callable[..., Any]:
    def method(self: Pending, *_args: object) -> Pending:
        return Pending(self.what)

    method.__name__ = name
    return method


for _name in ("bool", "int", "float", "index", "len", "iter", "contains"):
    setattr(Pending, f"__{_name}__", _refuse(f"__{_name}__"))
_OPERATORS = """
    add sub mul truediv pow radd rsub rmul rtruediv neg getitem lt le gt ge eq ne and or invert
"""
for _name in _OPERATORS.split():
    setattr(Pending, f"__{_name}__", _stay_pending(f"__{_name}__"))
Pending.__hash__ = object.__hash__


class Batch(Carried):
    """Samples on an edge. Subclass it, with a granularity, to declare a batch type of your own.

    Attributes:
        index: int64 `(n,)`, the sample's place in the iteration's dispatch order.
        group: int64 `(n,)`, the index of the prompt that the sample answers.
    """

    index: Tensor = per_sample()
    group: Tensor = per_sample()

    def __len__(self) -> int:
        """The number of samples."""
        if self.source is not None:
            raise _branched(type(self).__name__, caller())
        return self.index.shape[0]  # `len` of a tensor takes ten times as long

    def __iter__(self) -> Iterator[Any]:
        """A batch is not a sequence: use its fields."""
        if self.source is not None:
            raise _branched(type(self).__name__, caller())
        raise TypeError(f"{type(self).__name__} is not a sequence; use its fields")

    def replace(self, **fields: Any) -> Self:
        """A copy with other values in some fields."""
        return dataclasses.replace(cast("Any", self), **fields)

    @classmethod
    def columns_by_axis(cls) -> dict[str, dict[str, int]]:
        """Axis name → field name → extra values a sample (only packed fields have any)."""
        axes: dict[str, dict[str, int]] = {"sample": {}, "token": {}, "object": {}}
        for field in dataclasses.fields(cast("Any", cls)):
            axes[field.metadata["axis"]][field.name] = field.metadata.get("extra", 0)
        return axes


class TokenBatch(Batch):
    """A batch with packed fields.

    Attributes:
        lengths: int64 `(n,)`, the number of tokens (or steps) of each sample.
    """

    lengths: Tensor = per_sample()
