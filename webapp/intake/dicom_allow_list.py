"""Which elements of a DICOM file are kept, and which part of each: an allow-list.

DICOM PS3.15 Annex E lists what to remove; with an allow-list nothing can be forgotten. It keeps the
geometry, the encoding of the pixels and their conversion to Hounsfield units. Numbers are kept only
if they are valid, codes only if they are known, and UIDs are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from ml.files.image_types import LOCALIZERS, MADE, PAGES, plain_word

MAX_CODES = 8
MAX_NUMBERS = 256
"""Maximum bytes of numbers written as text: a direction has six of at most 16 characters."""
IMAGE_TYPES = (
    "ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "VOLUME", "NONE", *LOCALIZERS, *PAGES,
    *MADE,
)  # fmt: skip
BODY_PARTS = (
    "HEAD", "BRAIN", "SKULL", "HEADNECK", "NECK", "FACE", "ORBIT", "SINUS", "IAC", "EAR",
    "WHOLEBODY", "CHEST", "ABDOMEN", "PELVIS",
    "SPINE", "CSPINE", "TSPINE", "LSPINE", "EXTREMITY", "KNEE", "SHOULDER", "HIP", "HEART",
    "COLON", "LIVER", "LUNG",
)  # fmt: skip
RESCALE_TYPES = ("HU", "HU_MOD", "US", "OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
ANOTHER_TYPE = b"OTHER"
MAX_LUT = 2 * 2**16
"""Bytes of a table of Hounsfield units: two for each number of 16 bits."""
NUMBERED_KERNEL = re.compile(rb"[A-Z]{1,2}[a-z]?[0-9]{1,3}[a-z]{0,2}[0-9]?")
NAMED_KERNELS = (
    b"STANDARD", b"SOFT", b"DETAIL", b"CHEST", b"LUNG", b"BONE", b"BONEPLUS", b"EDGE", b"ULTRA",
    b"SMOOTH", b"SHARP", b"BRAIN",
)  # fmt: skip

Change = Callable[[bytes], bytes | None]
Allowed: TypeAlias = "Mapping[int, tuple[bytes, Change | Allowed]]"


def numbers(value: bytes) -> bytes | None:
    """Keep a few decimal numbers written as text; a decimal comma becomes a point, and nothing is
    kept of empty numbers at the end.
    """
    value = value.rstrip(b" \0\\")
    if len(value) > MAX_NUMBERS or not re.fullmatch(rb"[0-9+\-.,eE \\\0]*", value):
        return None
    return b"\\".join(
        number.replace(b",", b".") if number.count(b",") == 1 and b"." not in number else number
        for number in value.split(b"\\")
    )


def _rescale_type(value: bytes) -> bytes | None:
    """Keep the unit of rescaled values; an unknown word becomes a placeholder."""
    word = value.decode("latin-1").strip(" \0").upper()
    if word.startswith("HOUNSFIELD"):
        return b"HU"
    return word.encode() if word in RESCALE_TYPES else ANOTHER_TYPE if word else None


def table(value: bytes) -> bytes | None:
    """Keep a table of values, of at most `MAX_LUT` bytes."""
    return value


def binary(value: bytes) -> bytes | None:
    """Keep a few binary numbers."""
    return value if len(value) <= 16 else None


def _codes(*known: str) -> Change:
    """Return a rule that keeps the codes among `known`, each at its position."""

    def keep(value: bytes) -> bytes | None:
        codes = [plain_word(code) for code in value.decode("latin-1").split("\\")]
        allowed = [code if code in known else "" for code in codes[:MAX_CODES]]
        return "\\".join(allowed).encode() if any(allowed) else None

    return keep


def _standard_uid(value: bytes) -> bytes | None:
    """Keep a UID that the standard defines: it identifies a kind of object, never a patient."""
    return value if re.fullmatch(rb"1\.2\.840\.10008\.[0-9.]{1,40}\0?", value) else None


def uid(value: bytes) -> bytes | None:
    """Keep a UID, even a made-up one with letters, until `webapp.intake.dicom` replaces it."""
    return value if re.fullmatch(rb"[ -~]{1,64}\0?", value) else None


def _kernel(value: bytes) -> bytes | None:
    """Keep the name of a reconstruction kernel if it looks like a manufacturer's."""
    first = value.split(b"\\")[0].strip(b" \0")
    return first if first in NAMED_KERNELS or NUMBERED_KERNEL.fullmatch(first) else None


_FRAME: Allowed = {
    0x00209113: (b"SQ", {0x00200032: (b"DS", numbers)}),
    0x00209116: (b"SQ", {0x00200037: (b"DS", numbers)}),
    0x00289110: (
        b"SQ",
        {
            0x00180050: (b"DS", numbers),
            0x00180088: (b"DS", numbers),
            0x00280030: (b"DS", numbers),
        },
    ),
    0x00289145: (
        b"SQ",
        {
            0x00281052: (b"DS", numbers),
            0x00281053: (b"DS", numbers),
            0x00281054: (b"LO", _rescale_type),
        },
    ),
    0x00189329: (b"SQ", {0x00089007: (b"CS", _codes(*IMAGE_TYPES))}),
    0x00209111: (
        b"SQ",
        {
            0x00209057: (b"UL", binary),
            0x00209128: (b"UL", binary),
            0x00209156: (b"US", binary),
            0x00209157: (b"UL", binary),
        },
    ),
}

ALLOWED: Allowed = {
    0x00080008: (b"CS", _codes(*IMAGE_TYPES)),
    0x00080016: (b"UI", _standard_uid),
    0x00080018: (b"UI", uid),
    0x00080060: (b"CS", _codes("CT")),
    0x00180015: (b"CS", _codes(*BODY_PARTS)),
    0x00180050: (b"DS", numbers),
    0x00180060: (b"DS", numbers),
    0x00180088: (b"DS", numbers),
    0x00181120: (b"DS", numbers),
    0x00181210: (b"SH", _kernel),
    0x00185100: (b"CS", _codes("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")),
    0x0020000D: (b"UI", uid),
    0x0020000E: (b"UI", uid),
    0x00200011: (b"IS", numbers),
    0x00200012: (b"IS", numbers),
    0x00200013: (b"IS", numbers),
    0x00200032: (b"DS", numbers),
    0x00200037: (b"DS", numbers),
    0x00200052: (b"UI", uid),
    0x00201041: (b"DS", numbers),
    0x00209161: (b"UI", uid),
    0x00209162: (b"US", binary),
    0x00209228: (b"UL", binary),
    0x00280002: (b"US", binary),
    0x00280004: (b"CS", _codes("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL",
    "YBR_FULL_422", "YBR_ICT", "YBR_RCT")),
    0x00280006: (b"US", binary),
    0x00280008: (b"IS", numbers),
    0x00280010: (b"US", binary),
    0x00280011: (b"US", binary),
    0x00280030: (b"DS", numbers),
    0x00280034: (b"IS", numbers),
    0x00280100: (b"US", binary),
    0x00280101: (b"US", binary),
    0x00280102: (b"US", binary),
    0x00280103: (b"US", binary),
    0x00280120: (b"US", binary),
    0x00280121: (b"US", binary),
    0x00280301: (b"CS", _codes("YES", "NO")),
    0x00281050: (b"DS", numbers),
    0x00281051: (b"DS", numbers),
    0x00281052: (b"DS", numbers),
    0x00281053: (b"DS", numbers),
    0x00281054: (b"LO", _rescale_type),
    0x00283000: (
        b"SQ",
        {
            0x00283002: (b"US", binary),
            0x00283004: (b"LO", _rescale_type),
            0x00283006: (b"OW", table),
        },
    ),
    0x00282110: (b"CS", _codes("00", "01")),
    0x52009229: (b"SQ", _FRAME),
    0x52009230: (b"SQ", _FRAME),
}  # fmt: skip
METHOD = {
    0x00120062: (b"CS", b"YES"),
    0x00120063: (b"LO", b"Hemoscan: written anew from an allow-list of tags"),
}
