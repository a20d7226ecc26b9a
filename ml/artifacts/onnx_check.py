"""Whether an ONNX graph holds all that it needs: read from its bytes, before anything is loaded or
computed.

A graph may name files that its weights lie in, and operators that only somebody's library knows.
Neither is wanted in a model folder. What protobuf writes is a run of (field number, kind, value),
so following the few fields that can say such a thing needs no library; serving has none for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml.errors import ArtifactError

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""Of the operators that ONNX itself defines."""
DEEPEST = 40
"""Messages within messages; real graphs have fewer than ten."""

# By message of onnx.proto: field number -> what it holds.
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
    """Refuse a graph that needs more than itself and ONNX's own operators.

    Raises:
        ArtifactError: its weights lie elsewhere, an operator or function is not ONNX's own, or it
            is no graph at all.
        OSError: the file cannot be read.
    """
    try:
        _follow(memoryview(path.read_bytes()), "model", path.name, 0)
    except (IndexError, UnicodeDecodeError, _Damaged) as err:
        raise ArtifactError(f"The model's {path.name} is no graph that can be read.") from err


class _Damaged(ValueError):
    """These bytes are not what protobuf writes."""


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
                f"The model's {name} brings functions of its own; only ONNX's own operators are"
                " computed."
            )
        if inner == "outside" or (inner == "location" and value != 0):
            raise ArtifactError(
                f"The model's {name} keeps weights in another file; a graph must hold all that it"
                " needs."
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
                    " computed."
                )
        else:
            _follow(value, inner, name, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field: a number, or the bytes of a text or message."""
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
    """Return the number that begins at `place`, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _Damaged
