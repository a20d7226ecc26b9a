"""Mutations of valid files: random ones, and ones of format metadata.

Checksums are usually corrected, so that the code behind them is reached.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

from bench.fuzz.seeds import Seed
from webapp.intake.dicom import PIXELS, as_element
from webapp.intake.dicom_allow_list import ALLOWED
from webapp.intake.nifti import GZIP

PNG_SIGNATURE_BYTES = 8
NIFTI_HEADER_BYTES = 544
PATIENT_ID = 0x00100020
EXTREMES = (
    0,
    1,
    2,
    7,
    8,
    16,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
EXTREME_REALS = (
    0.0,
    -0.0,
    1e-45,
    1e-6,
    1e30,
    -1e30,
    3.4e38,
    float("nan"),
    float("inf"),
    float("-inf"),
    -1.0,
    1e5,
)
WORDS = (
    b"", b" ", b"0", b"-1", b"+", b"e", b"1", b"2", b"1e300", b"-1e300", b"1e-300", b"1e309",
    b"nan", b"inf", b"9" * 5000, b"1" * 90,
    b"1\\2\\3", b"0\\0\\0\\0\\0\\0", b"1\\0\\0\\0\\1\\0", b"1e300\\1e300", b"0.5\\0.5", b"-5\\5",
    b"1_0", b"\xff\xfe", b"\0", b"HEAD",
    b"YES", b"MONOCHROME1", b"RGB", b"US", b"CT", b"..\\..\\x", b"1.2." * 16,
    b"\x08\0", b"\x10\0", b"\xff\xff", b"\0\0", b"\x01\0", b"\x20\0",
)  # fmt: skip
NAMES = (
    "../x",
    "/etc/x",
    "C:\\x",
    "a/../../b",
    "é" * 40,
    "x" * 300,
    ".hidden",
    "a\0b",
    "\u202eb",
    "",
    "__MACOSX/1",
    "CON",
    "1\n2",
)
FILE_NAMES = (
    "slice.dcm",
    "",
    "../../etc/passwd",
    "Doe^John.png",
    "\u202e.zip",
    "x" * 300,
    "a\tb;c",
    "é.jpg",
)
"""File names of uploads."""
PLACES = (1, 1, 1, 2, 3)

Change = Callable[[random.Random, bytearray], None]


def spoiled(seed: Seed, others: Sequence[Seed], rng: random.Random) -> bytes:
    """Return the file with one to three mutations; parts may come from `others` of its kind."""
    if seed.kind == "ZIP" and rng.random() < 0.6:
        return _archive_spoiled(seed.content, rng)
    if seed.kind == "DICOM" and rng.random() < 0.5:
        return _elements_spoiled(seed.content, rng)
    if seed.kind == "NIfTI":
        return _volume_spoiled(seed.content, rng)
    content = bytearray(seed.content)
    if rng.random() < 0.1:
        _splice(content, rng.choice(others).content, rng)
    _somewhere(content, rng)
    return (
        _with_checksums(bytes(content))
        if seed.kind == "PNG" and rng.random() < 0.8
        else bytes(content)
    )


def _somewhere(content: bytearray, rng: random.Random, within: int | None = None) -> None:
    for _ in range(rng.choice(PLACES)):
        if content:
            (
                rng.choice(CHANGES)(rng, content)
                if within is None
                else _overwrite(content, rng.randrange(min(within, len(content))), rng)
            )


def _place(rng: random.Random, content: bytearray) -> int:
    """Return a position, more often near the start, where headers are."""
    return int(len(content) * rng.random() ** 3)


def _flip(rng: random.Random, content: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 4, 32))):
        content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, at: int, rng: random.Random) -> None:
    order = rng.choice("<>")
    if rng.random() < 0.3:
        number = struct.pack(order + rng.choice("fd"), rng.choice(EXTREME_REALS))
    else:
        layout, bits = rng.choice((("B", 8), ("H", 16), ("I", 32), ("Q", 64)))
        number = struct.pack(
            order + layout,
            rng.choice((rng.choice(EXTREMES), rng.getrandbits(bits))) & ((1 << bits) - 1),
        )
    content[at : at + len(number)] = number[: len(content) - at]


def _put_number(rng: random.Random, content: bytearray) -> None:
    _overwrite(content, _place(rng, content), rng)


def _cut_off(rng: random.Random, content: bytearray) -> None:
    del content[rng.choice((_place(rng, content), max(0, len(content) - rng.randint(1, 200)))) :]


def _take_out(rng: random.Random, content: bytearray) -> None:
    at = _place(rng, content)
    del content[at : at + rng.choice((1, 2, 4, 16, 300, 5000))]


def _double(rng: random.Random, content: bytearray) -> None:
    at, count = _place(rng, content), rng.choice((1, 4, 12, 100, 3000))
    content[at:at] = content[at : at + count] * rng.choice((1, 1, 2, 20))


def _insert(rng: random.Random, content: bytearray) -> None:
    at = _place(rng, content)
    content[at:at] = rng.choice(
        (
            rng.randbytes(rng.choice((1, 2, 3, 50))),
            bytes(rng.choice((1, 4, 2000))),
            rng.choice(WORDS),
        )
    )


CHANGES: tuple[Change, ...] = (
    _flip,
    _flip,
    _put_number,
    _put_number,
    _put_number,
    _cut_off,
    _take_out,
    _double,
    _insert,
)


def _splice(content: bytearray, other: bytes, rng: random.Random) -> None:
    content[_place(rng, content) :] = other[int(len(other) * rng.random()) :]


def _with_checksums(content: bytes) -> bytes:
    """Return a PNG with corrected chunk checksums, as far as chunks can be parsed."""
    put_right, at = bytearray(content), PNG_SIGNATURE_BYTES
    while at + 12 <= len(content):
        end = at + 8 + struct.unpack_from(">I", content, at)[0]
        if end + 4 > len(content):
            break
        struct.pack_into(">I", put_right, end, zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(put_right)


def _elements_spoiled(content: bytes, rng: random.Random) -> bytes:
    """Return a DICOM file with invalid values in relevant elements; the last of duplicate tags
    counts.
    """
    order = ">" if b"1.2.840.10008.1.2.2\0" in content[:1000] else "<"
    implicit = b"1.2.840.10008.1.2\0" in content[:1000]
    at = content.find(struct.pack(f"{order}HH", PIXELS >> 16, PIXELS & 0xFFFF))
    added = b""
    for _ in range(rng.choice(PLACES)):
        tag = rng.choice([*ALLOWED, PATIENT_ID])
        vr = ALLOWED[tag][0] if tag in ALLOWED else b"LO"
        added += as_element(tag, vr, rng.choice(WORDS), order=order, implicit=implicit)
    spoiled = bytearray(content[:at] + added + content[at:] if at > 0 else content)
    if at < 0 or rng.random() < 0.3:
        _somewhere(spoiled, rng)
    return bytes(spoiled)


def _volume_spoiled(content: bytes, rng: random.Random) -> bytes:
    """Return a NIfTI file mutated inside or outside its gzip, or in header fields."""
    packed = content.startswith(GZIP)
    if packed and rng.random() < 0.2:
        spoiled = bytearray(content)
        _somewhere(spoiled, rng)
        return bytes(spoiled)
    spoiled = bytearray(gzip.decompress(content) if packed else content)
    _somewhere(spoiled, rng, NIFTI_HEADER_BYTES if rng.random() < 0.7 else None)
    return gzip.compress(bytes(spoiled), 1, mtime=0) if packed else bytes(spoiled)


def _archive_spoiled(content: bytes, rng: random.Random) -> bytes:
    """Return a valid archive with invalid members or names."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(rng.choice(PLACES)):
        place = rng.randrange(len(members))
        name, inner = members[place]
        spoiled = bytearray(inner)
        match rng.randrange(5):
            case 0:
                name = rng.choice(NAMES)
            case 1:
                members.append((name, inner))
            case 2:
                spoiled = bytearray(_zip([(name, inner)], rng))
            case _:
                _somewhere(spoiled, rng)
        members[place] = name, bytes(spoiled)
    return _zip(members, rng)


def _zip(members: Sequence[tuple[str, bytes]], rng: random.Random) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # Warnings about a duplicate name.
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (
                0o600 if rng.random() < 0.98 else rng.choice((0o120777, 0o40755))
            ) << 16
            info.compress_type = (
                rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                if rng.random() < 0.98
                else zipfile.ZIP_BZIP2
            )
            archive.writestr(info, content)
    return file.getvalue()
