"""JSON as frozen dataclasses, and back: what a card, a checkpoint or a file of results holds.

The keys are the names of the fields. A field with a default may be absent; one whose default is
None is not written while it is None. Keys that a dataclass does not have are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
NAMES = {dict: "object", Mapping: "object", list: "array", tuple: "array"}


class JsonError(ValueError):
    """A value does not have the form that was asked for.

    The text continues a sentence that begins with what was read: "lacks 'seed'", for one.
    """


def to_json(value: Any) -> Any:
    """Return dataclasses, mappings and sequences as what `json.dumps` takes."""
    if is_dataclass(value) and not isinstance(value, type):
        held = {item.name: (getattr(value, item.name), item.default) for item in fields(value)}
        return {
            name: to_json(one)
            for name, (one, default) in held.items()
            if not (one is None and default is None)
        }
    if isinstance(value, Mapping):
        return {key: to_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(one) for one in value]
    return value


def from_json(kind: type[T], value: object, name: str = "") -> T:
    """Return a value that JSON gave as a dataclass.

    Args:
        kind: the dataclass; its fields may be dataclasses, lists, tuples of one kind, mappings from
            str, numbers, str, bool, any of them or None, or `Any`.
        value: what `json.loads` returned.
        name: where the value stands, for the sentence of an error; empty for the whole.

    Raises:
        JsonError: a field is missing or of another kind.
    """
    return cast(T, _read(kind, value, name))


def _read(kind: Any, value: Any, name: str) -> Any:
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (other,) = (one for one in inner if one is not NoneType)
        return None if value is None else _read(other, value, name)
    if is_dataclass(kind):
        return _read_fields(kind, value, name)
    if origin in (list, tuple):
        _require(isinstance(value, list), origin, value, name)
        read = [_read(inner[0], one, name) for one in value]
        return tuple(read) if origin is tuple else read
    if origin in (dict, Mapping):
        _require(isinstance(value, dict), origin, value, name)
        return {key: _read(inner[1], one, _inside(name, key)) for key, one in value.items()}
    is_kind = isinstance(value, (int, float) if kind is float else kind)
    _require(is_kind and isinstance(value, bool) == (kind is bool), kind, value, name)
    return value


def _read_fields(kind: Any, value: Any, name: str) -> Any:
    _require(isinstance(value, dict), dict, value, name)
    given = {}
    for item in fields(kind):
        inside = _inside(name, item.name)
        if item.name in value:
            given[item.name] = _read(_kinds_of(kind)[item.name], value[item.name], inside)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise JsonError(f"lacks {inside!r}")
    return kind(**given)


@cache
def _kinds_of(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _inside(name: str, key: str) -> str:
    return f"{name}.{key[:40]}" if name else key[:40]


def _require(holds: bool, kind: Any, value: object, name: str) -> None:
    if not holds:
        wanted = NAMES.get(kind) or kind.__name__
        raise JsonError(f"gives {name!r} as {str(value)[:40]!r}, not as {wanted}")
