"""Conversion between JSON and frozen dataclasses: the contents of a card, a checkpoint or a file of
results.

The keys are the names of the fields. A field with a default may be absent; one whose default is
None is not written if it is None. Keys that a dataclass does not have are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class JsonError(ValueError):
    """A value does not have the expected form.

    The message continues a sentence that begins with the name of what was read.
    """


def to_json(value: Any) -> Any:
    """Convert dataclasses, mappings and sequences to values that `json.dumps` accepts."""
    if is_dataclass(value) and not isinstance(value, type):
        items = {item.name: (getattr(value, item.name), item.default) for item in fields(value)}
        return {
            name: to_json(item_value)
            for name, (item_value, default) in items.items()
            if not (item_value is None and default is None)
        }
    if isinstance(value, Mapping):
        return {key: to_json(item_value) for key, item_value in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item_value) for item_value in value]
    return value


def from_json(kind: type[T], value: object) -> T:
    """Convert the result of `json.loads` to a dataclass.

    Raises:
        JsonError: a field is missing or of another type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        message = str(err).replace(" - at ", " at ")
        raise JsonError(
            f"does not have the expected form: {message[0].lower()}{message[1:]}"
        ) from err
