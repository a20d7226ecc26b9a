"""Check that an ONNX graph is self-contained, from its bytes, before it is loaded.

A graph can refer to external weight files and to custom operators; neither is allowed in a model
folder. A protobuf message is a sequence of (field number, wire type, value), so the few relevant
fields can be followed without the onnx package, which is not installed for serving.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml.errors import ArtifactError

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""The domains of ONNX's own operators."""
DEEPEST = 40
"""Maximum nesting of messages; real graphs have fewer than ten levels."""

# For each message type of onnx.proto: field number -> its content.
_LEADS_TO = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "functions"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute", 7: "domain"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "outside", 14: "location"},
    "opset": {1: "domain"},
}
_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5


def require_self_contained(path: Path) -> None:
    """Raise unless a graph is self-contained and uses only ONNX's own operators.

    Raises:
        ArtifactError: it has external weights, custom operators or functions, or is not a graph.
        OSError: the file cannot be read.
    """
    try:
        _follow(memoryview(path.read_bytes()), "model", path.name, 0)
    except (IndexError, UnicodeDecodeError, _Damaged) as err:
        raise ArtifactError(f"The model's {path.name} is not a readable ONNX graph.") from err


class _Damaged(ValueError):
    """The bytes are not a valid protobuf message."""


def _follow(message: memoryview, kind: str, name: str, depth: int) -> None:
    if depth > DEEPEST:
        raise _Damaged
    leads_to = _LEADS_TO[kind]
    for number, value in _fields(message):
        inner = leads_to.get(number)
        if inner is None:
            continue
        if inner == "functions":
            raise ArtifactError(
                f"The model's {name} defines its own functions; only ONNX's own operators are"
                " allowed."
            )
        if inner == "outside" or (inner == "location" and value != 0):
            raise ArtifactError(
                f"The model's {name} keeps weights in another file; a graph must be self-contained."
            )
        if inner == "location":
            continue
        if isinstance(value, int):
            raise _Damaged
        if inner == "domain":
            domain = str(value, "utf-8")
            if domain not in DOMAINS:
                raise ArtifactError(
                    f"The model's {name} uses operators of {domain[:60]!r}; only ONNX's own are"
                    " allowed."
                )
        else:
            _follow(value, inner, name, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field: an integer, or the bytes of a string or message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if wire == _LENGTH:
            length, place = _varint(message, place)
        elif wire in (_FIXED_32, _FIXED_64):
            length = 4 if wire == _FIXED_32 else 8
        else:
            raise _Damaged
        if place + length > len(message):
            raise _Damaged
        yield key >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the varint that starts at `place`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _Damaged
