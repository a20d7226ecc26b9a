"""The bytes of a DICOM association (PS3.8 9.3 and PS3.7 9.3), and mutations of them."""

from __future__ import annotations

import random
from struct import pack

VERIFICATION, CT = b"1.2.840.10008.1.1", b"1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
SYNTAXES = (IMPLICIT, EXPLICIT, b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.4.70", b"1.2.3", b"")
ECHO, STORE = 1, 3
"""The presentation contexts of the association."""
RELEASE = b"\x05\0\0\0\0\x04\0\0\0\0"
LENGTHS = (0, 1, 3, 2**16, 2**20, 2**20 + 1, 2**31, 2**32 - 1)
PIECE = 16_000
"""Bytes of a data set in one PDU."""


def pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    """Return a PDU, which may claim another length."""
    return pack(">BBI", kind, 0, len(content) if length is None else length) + content


def item(kind: int, content: bytes, length: int | None = None) -> bytes:
    """Return an item of an association request."""
    return pack(">BBH", kind, 0, len(content) if length is None else length & 0xFFFF) + content


def request(
    syntax: bytes = EXPLICIT, called: bytes = b"HEMOSCAN", calling: bytes = b"CT1"
) -> bytes:
    """Return the request of an association with contexts for C-ECHO and C-STORE."""
    contexts = b"".join(
        item(0x20, pack("BBBB", number, 0, 0, 0) + item(0x30, abstract) + item(0x40, transfer))
        for number, abstract, transfer in ((ECHO, VERIFICATION, IMPLICIT), (STORE, CT, syntax))
    )
    user = item(0x51, pack(">I", PIECE + 100)) + item(0x52, b"1.2.3.4")
    return pdu(
        1,
        pack(">HH", 1, 0)
        + called.ljust(16)[:16]
        + calling.ljust(16)[:16]
        + bytes(32)
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + contexts
        + item(0x50, user),
    )


def data(context: int, content: bytes, *, is_command: bool, is_last: bool = True) -> bytes:
    """Return a PDU with one fragment of a message."""
    control = int(is_command) | 2 * int(is_last)
    return pdu(4, pack(">IBB", len(content) + 2, context, control) + content)


def _element(number: int, value: bytes) -> bytes:
    value += bytes(len(value) % 2)
    return pack("<HHI", 0, number, len(value)) + value


def command(number: int, sop_class: bytes, instance: bytes = b"") -> bytes:
    """Return a command set; with an instance, a data set follows."""
    elements = (
        _element(0x0002, sop_class)
        + _element(0x0100, pack("<H", number))
        + _element(0x0110, pack("<H", 7))
        + (_element(0x0700, pack("<H", 0)) if instance else b"")
        + _element(0x0800, pack("<H", 1 if instance else 0x0101))
        + (_element(0x1000, instance) if instance else b"")
    )
    return _element(0, pack("<I", len(elements))) + elements


def echo() -> list[bytes]:
    """Return the PDUs that ask for a C-ECHO."""
    return [data(ECHO, command(0x0030, VERIFICATION), is_command=True)]


def store(dataset: bytes, instance: bytes) -> list[bytes]:
    """Return the PDUs that send an instance."""
    pieces = [dataset[at : at + PIECE] for at in range(0, len(dataset), PIECE)]
    return [
        data(STORE, command(0x0001, CT, instance), is_command=True),
        *(
            data(STORE, piece, is_command=False, is_last=number == len(pieces))
            for number, piece in enumerate(pieces, 1)
        ),
    ]


def spoiled(pdus: list[bytes], rng: random.Random) -> list[bytes]:
    """Return the PDUs of an association with one mutation."""
    if not all(pdus):  # Cut already.
        return pdus
    pdus, at = list(pdus), rng.randrange(len(pdus))
    chosen = pdus[at]
    how = rng.randrange(10)
    if how == 0:  # Another length of the PDU.
        pdus[at] = chosen[:2] + pack(">I", rng.choice(LENGTHS)) + chosen[6:]
    elif how == 1 and len(chosen) > 12:  # Another length of the fragment, or of an item.
        place = rng.randrange(6, len(chosen) - 4)
        pdus[at] = chosen[:place] + pack(">I", rng.choice(LENGTHS)) + chosen[place + 4 :]
    elif how == 2:  # Another kind of PDU.
        pdus[at] = bytes([rng.randrange(12)]) + chosen[1:]
    elif how == 3:  # The end is missing.
        pdus = [*pdus[:at], chosen[: rng.randrange(len(chosen))]]
    elif how == 4:
        pdus.insert(at, chosen)
    elif how == 5:
        rng.shuffle(pdus)
    elif how == 6:
        del pdus[at]
    elif how == 7:
        pdus.insert(
            at, pdu(rng.choice((1, 2, 3, 4, 5, 6, 7, 99)), rng.randbytes(rng.randrange(40)))
        )
    else:
        changed = bytearray(chosen)
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        pdus[at] = bytes(changed)
    return pdus
