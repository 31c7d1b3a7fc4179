"""`Record`: what ``@dataclass(frozen=True, slots=True)`` gives, without its price at the start.

`dataclass` writes and compiles six functions for every class, half a millisecond each time: for all
the messages, events and settings here, a quarter of the time from the start to an open port. The
classes derived from `Record` share the functions below, and a field is declared, typed and checked
as in a dataclass: `dataclass_transform` (PEP 681) tells the type checker. What is not used here
does not exist: mutable records, ordering, keyword-only and init-only fields, several bases.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    R = TypeVar("R", bound="Record")

__all__ = ["Record", "field", "replace"]


class _Shape(NamedTuple):
    """The fields of one class of records, in the order of declaration."""

    names: tuple[str, ...] = ()
    defaults: Mapping[str, object] = {}
    factories: Mapping[str, Callable[[], object]] = {}
    hidden: frozenset[str] = frozenset()  # from repr
    incomparable: frozenset[str] = frozenset()

    def extended(self, own: Mapping[str, Field[Any]]) -> _Shape:
        """Return the shape of a class derived from one of this shape."""
        given = {name: spec.default for name, spec in own.items() if spec.default is not MISSING}
        made = {
            name: spec.default_factory
            for name, spec in own.items()
            if spec.default_factory is not MISSING
        }
        return _Shape(
            (*self.names, *own),
            {**self.defaults, **given},
            {**self.factories, **made},
            self.hidden.union(name for name, spec in own.items() if not spec.repr),
            self.incomparable.union(name for name, spec in own.items() if not spec.compare),
        )

    def arranged(self, values: tuple[object, ...], named: dict[str, object]) -> list[object]:
        """Return a value for each field, from what a call gave and from the defaults."""
        found = dict(zip(self.names, values, strict=False))
        if len(values) > len(self.names) or not found.keys().isdisjoint(named):
            raise TypeError("more values than fields, or two for one")
        found |= named
        for name in self.names:
            if name not in found:
                if name in self.defaults:
                    found[name] = self.defaults[name]
                elif name in self.factories:
                    found[name] = self.factories[name]()
                else:
                    raise TypeError(f"the field {name} is missing")
        if len(found) > len(self.names):
            raise TypeError(f"no such field: {', '.join(found.keys() - set(self.names))}")
        return [found[name] for name in self.names]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class _RecordType(type):
    """Turns annotations into slots."""

    __shape__: _Shape

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _RecordType:
        own: dict[str, Field[Any]] = {}
        for attribute, annotation in namespace.get("__annotations__", {}).items():
            if not str(annotation).removeprefix("typing.").startswith("ClassVar"):
                given = namespace.pop(attribute, MISSING)
                own[attribute] = given if isinstance(given, Field) else field(default=given)
        base = bases[0].__shape__ if bases and isinstance(bases[0], _RecordType) else _Shape()
        shape = base.extended(own) if own else base
        namespace |= {"__slots__": tuple(own), "__shape__": shape, "__match_args__": shape.names}
        return type.__new__(cls, name, bases, namespace)


_set: Final = object.__setattr__


class Record(metaclass=_RecordType):
    """Base of frozen values that are equal if they are of one class and their fields are."""

    def __init__(self, *values: object, **named: object) -> None:
        shape = type(self).__shape__
        names = shape.names
        if named or len(values) != len(names):
            values = tuple(shape.arranged(values, named))
        for name, value in zip(names, values, strict=True):
            _set(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values, where a class wants that."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __repr__(self) -> str:
        shape = type(self).__shape__
        shown = [f"{n}={getattr(self, n)!r}" for n in shape.names if n not in shape.hidden]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _compared(self) == _compared(other)

    def __hash__(self) -> int:
        return hash(_compared(self))


def _compared(record: Record) -> tuple[object, ...]:
    shape = type(record).__shape__
    return tuple([getattr(record, n) for n in shape.names if n not in shape.incomparable])


def replace(record: R, **changes: object) -> R:
    """Return a record with some fields changed."""
    shape = type(record).__shape__
    return type(record)(**{**{name: getattr(record, name) for name in shape.names}, **changes})
