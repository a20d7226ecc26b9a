"""DICOM files: reading the header, which decides on acceptance, and writing a de-identified copy.

The copy is written from scratch with an allow-list (`webapp/intake/dicom_allow_list.py`).
Everything else is dropped: private groups, other sequences, overlays, texts, dates, the preamble,
names in the file meta information, and data after the pixels. Pixels are copied unchanged, never
decoded.

pydicom is not used here: it loads numpy, a quarter of the memory that a web process may use, and
reads complete values into memory, which may be huge in a malicious file. Formats: PS3.10 section 7
and PS3.5 section 7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from struct import calcsize, pack, unpack
from typing import IO, Any

from ml.files.image_types import ImageKind, image_kind
from webapp.intake.dicom_allow_list import (
    ALLOWED,
    MAX_LUT,
    METHOD,
    Allowed,
    Change,
    numbers,
    table,
    uid,
)
from webapp.intake.streams import (
    BLOCK,
    MAX_PARTS,
    Budget,
    DamagedFile,
    copy_exactly,
    read_exactly,
)

IMPLICIT_VR, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
EXPLICIT_VR = "1.2.840.10008.1.2.1"
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95")
COMPRESSED = (
    "1.2.840.10008.1.2.5",  # RLE.
    # JPEG, JPEG-LS, JPEG 2000.
    *(
        f"1.2.840.10008.1.2.4.{number}"
        for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)
    ),
)
READ_SYNTAXES = (IMPLICIT_VR, EXPLICIT_VR, BIG_ENDIAN, *COMPRESSED)
"""The transfer syntaxes that the workers decode; the deflated one is not among them, because it
would be inflated without a limit.
"""
CT_SOP_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
)
OUR_IMPLEMENTATION = "2.25.160431978466402346213019237187468093273"

LONG_VRS = (
    b"OB",
    b"OD",
    b"OF",
    b"OL",
    b"OV",
    b"OW",
    b"SQ",
    b"SV",
    b"UC",
    b"UN",
    b"UR",
    b"UT",
    b"UV",
)
NUMBER_VRS = {b"FL": "f", b"FD": "d", b"SS": "h", b"US": "H", b"SL": "i", b"UL": "I"}
START_BYTES = 132 + 12
META_BYTES = 4096
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_ENDS, SEQUENCE_ENDS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
SYNTAX, FRAMES, PIXELS = 0x00020010, 0x00280008, 0x7FE00010
POSITION, PLANE_POSITION, SHARED, PER_FRAME = 0x00200032, 0x00209113, 0x52009229, 0x52009230
TYPE_OF_FRAME, FRAME_TYPE = 0x00189329, 0x00089007
FILTER, KERNEL, TEMPORAL_POSITION, VOLTAGE = 0x00181160, 0x00181210, 0x00200100, 0x00180060
PARTS_OF_FRAME = 200
"""Additional elements allowed for each frame: an enhanced file describes a frame with about a
hundred.
"""
MAX_KEPT_BYTES, MAX_SEQUENCE = 8 * 2**20, 32 * 2**20
"""Maximum total bytes of the values that are kept, and of a sequence of undefined length: enough to
describe thousands of frames.
"""

LOOKED_AT = {
    SYNTAX: b"UI", 0x00080008: b"CS", 0x00080032: b"TM", 0x00080033: b"TM", 0x00080060: b"CS",
    0x00081030: b"LO", 0x0008103E: b"LO", 0x00100020: b"LO", 0x00181030: b"LO", FRAMES: b"IS",
    FILTER: b"SH", KERNEL: b"SH", TEMPORAL_POSITION: b"IS",
}  # fmt: skip
"""Elements that are read but not kept, or not in this form: acceptance and grouping depend on
them.
"""


@dataclass(frozen=True)
class DicomHeader:
    """The attributes that decide whether a DICOM file is accepted, and to which scan it belongs;
    any may be missing. `patient`, `study`, `series`, `instance`, `concatenation`, `time` and
    `technique` are never stored, and of the descriptions and the protocol only words that
    `webapp.intake.titles` knows. `technique` contains what may differ between two reconstructions
    of one acquisition, or between the two energies of a dual-energy acquisition.

    `position` and `orientation` are those of the slice in patient coordinates, `location` its
    position along the table, `thickness` is in mm, `frame_positions` the positions of the frames of
    an enhanced file; all are empty or None if the file does not state them. `image_kind` follows
    from the image type and the SOP class.
    """

    transfer_syntax: str = ""
    sop_class: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    image_kind: ImageKind = ImageKind.SLICE
    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    concatenation: str = ""
    number: float | None = None
    acquisition: float | None = None
    time: str = ""
    technique: tuple[str, ...] = ()
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    location: float | None = None
    thickness: float | None = None
    frame_positions: tuple[tuple[float, ...], ...] = ()
    series_number: str = ""
    series_description: str = ""
    study_description: str = ""
    protocol: str = ""
    body_part: str = ""
    kernel: str = ""
    samples: int = 1
    frames: str = ""
    rows: int = 0
    columns: int = 0
    has_burned_in_text: bool = False
    has_pixels: bool = False

    @property
    def is_deflated(self) -> bool:
        """True if only the transfer syntax can be read without inflating the rest."""
        return self.transfer_syntax in DEFLATED


class DicomFile:
    """A DICOM file, read up to its pixels; `write` writes the clean copy."""

    def __init__(self, stream: IO[bytes], budget: Budget | None = None) -> None:
        """Read the header of the file in `stream`, up to its pixels.

        Raises:
            DamagedFile: its structure cannot be parsed.
            TooMuchWork: the budget is used up.
        """
        self._stream, self._shared_budget = stream, budget or Budget()
        self._kept: dict[int, Any] = {}  # Bytes or, for a sequence, a list of such dictionaries.
        self._seen: dict[int, bytes] = {}
        self.pixels_digest = b""
        stream.seek(0)
        stream.seek(start_of_data(stream.read(START_BYTES)) or 0)
        self._order, self._implicit = "<", False
        self._budget, self._room = MAX_PARTS, MAX_KEPT_BYTES
        self._pixels: tuple[bytes, int] | None = None
        for tag, vr, length in self._elements(lambda tag: tag >> 16 != 2):
            self._take(tag, vr, length, {})
        syntax = self._text(SYNTAX) or self._likely_syntax()
        if syntax in (IMPLICIT_VR, EXPLICIT_VR):  # Some files state one and use the other.
            syntax = self._likely_syntax() or syntax
        if syntax and syntax not in DEFLATED:
            self._order, self._implicit = (
                ">" if syntax == BIG_ENDIAN else "<",
                syntax == IMPLICIT_VR,
            )
            for tag, vr, length in self._elements(lambda tag: tag > PIXELS):
                if tag == PIXELS:
                    self._pixels = vr, length
                    if length == UNDEFINED and not self._text(SYNTAX):
                        syntax = ""  # Compressed, with an unknown encoding.
                    break
                self._take(tag, vr, length, ALLOWED)
        self.header = self._header(syntax)

    def _likely_syntax(self) -> str:
        """Guess the transfer syntax of a file that does not state it, from its first element; "" if
        it has none.
        """
        at = self._stream.tell()
        start = self._stream.read(8)
        self._stream.seek(at)
        if len(start) < 8 or start[:2] != b"\x08\0":
            return ""
        return EXPLICIT_VR if start[4:6].isalpha() and start[4:6].isupper() else IMPLICIT_VR

    def write(self, target: IO[bytes], new_uid: Callable[[str], str]) -> None:
        """Write the copy to `target`; `new_uid` returns the replacement of a UID.

        Raises:
            DamagedFile: pixels are missing.
        """
        if self._pixels is None:
            raise DamagedFile
        values = dict(self._kept)
        for tag, value in values.items():
            if ALLOWED[tag][1] is uid and isinstance(value, bytes):
                values[tag] = new_uid(_as_text(value)).encode()
        instance = values.get(0x00080018) or new_uid("").encode()
        meta = b"".join(
            as_element(tag, vr, value, order="<", implicit=False)
            for tag, vr, value in (
                (0x00020001, b"OB", b"\0\1"),
                (0x00020002, b"UI", values.get(0x00080016) or CT_SOP_CLASSES[0].encode()),
                (0x00020003, b"UI", instance),
                (SYNTAX, b"UI", self.header.transfer_syntax.encode()),
                (0x00020012, b"UI", OUR_IMPLEMENTATION.encode()),
                (0x00020013, b"SH", b"HEMOSCAN"),
            )
        )
        target.write(
            bytes(128)
            + b"DICM"
            + as_element(0x00020000, b"UL", pack("<I", len(meta)), order="<", implicit=False)
            + meta
        )
        elements = {tag: (ALLOWED[tag][0], value) for tag, value in values.items()} | METHOD
        for tag in sorted(elements):
            vr, value = elements[tag]
            target.write(self._encoded(tag, vr, value, ALLOWED[tag][1] if tag in ALLOWED else {}))
        self._copy_pixels(target)

    def _encoded(self, tag: int, vr: bytes, value: Any, allowed: Any) -> bytes:
        if isinstance(value, bytes):
            return as_element(tag, vr, value, order=self._order, implicit=self._implicit)
        items = []
        for item in value:
            inner = b"".join(
                self._encoded(tag, allowed[tag][0], item[tag], allowed[tag][1])
                for tag in sorted(item)
            )
            items.append(as_element(ITEM, b"", inner, order=self._order, implicit=True))
        return as_element(tag, vr, b"".join(items), order=self._order, implicit=self._implicit)

    def _copy_pixels(self, target: IO[bytes]) -> None:
        vr, length = self._pixels or (b"OW", 0)
        start = pack(f"{self._order}HH", PIXELS >> 16, PIXELS & 0xFFFF)
        if not self._implicit:
            start += (vr if vr in (b"OB", b"OW") else b"OW") + b"\0\0"
        target.write(start + pack(f"{self._order}I", length))
        digest = blake2b(digest_size=16)
        self._copy_coded(target, length, digest.update)
        self.pixels_digest = digest.digest()

    def _copy_coded(
        self, target: IO[bytes], length: int, on_block: Callable[[bytes], None]
    ) -> None:
        if length != UNDEFINED:
            copy_exactly(self._stream, target, length, on_block)
            return
        for _ in range(MAX_PARTS):
            start = read_exactly(self._stream, 8)
            group, element, length = unpack(f"{self._order}HHI", start)
            target.write(start)
            if group << 16 | element == SEQUENCE_ENDS:
                return
            if group << 16 | element != ITEM or length == UNDEFINED:
                raise DamagedFile
            self._shared_budget.spend_part()
            copy_exactly(self._stream, target, length, on_block)
        raise DamagedFile

    def _take(self, tag: int, vr: bytes, length: int, allowed: Allowed) -> None:
        """Keep the value of an element if it is allowed, record it if it is needed, and skip to its
        end.
        """
        if length != UNDEFINED and tag in LOOKED_AT and length <= BLOCK:
            at = self._stream.tell()
            self._seen[tag] = read_exactly(self._stream, length)
            self._stream.seek(at)
            if tag == FRAMES and (frames := self._text(FRAMES)).isdecimal() and len(frames) < 5:
                self._budget += PARTS_OF_FRAME * int(frames)
                self._shared_budget.allow_parts(PARTS_OF_FRAME * int(frames))
        if tag in allowed and (value := self._value(vr, length, *allowed[tag])) is not None:
            self._kept[tag] = value
        elif tag not in allowed:
            self._skip(vr, length)

    def _value(self, vr: bytes, length: int, kept_vr: bytes, rule: Change | Allowed) -> Any:
        """Read a value and return the part of it that is kept, as a value of `kept_vr`."""
        if isinstance(rule, Mapping):
            return self._items(length, rule)
        if length == UNDEFINED or length > (MAX_LUT if rule is table else BLOCK):
            self._skip(vr, length)
            return None
        self._room -= length
        if self._room < 0:
            raise DamagedFile
        value = read_exactly(self._stream, length)
        if rule is numbers and vr in NUMBER_VRS:
            value = _as_decimals(vr, value, self._order)
        elif kept_vr == b"US" and vr in (b"SL", b"UL") and length == 4:
            value = value[:2] if self._order == "<" else value[2:]
        return rule(value)

    def _items(self, length: int, allowed: Allowed) -> list[dict[int, Any]]:
        """Read a sequence whose elements are allowed, and return the part of each item that is
        kept.
        """
        end = self._stream.tell() + (MAX_SEQUENCE if length == UNDEFINED else length)
        items = []
        while self._stream.tell() < end:
            tag, _, length_of_item = self._next(implicit=True)
            if tag == SEQUENCE_ENDS:
                break
            if tag != ITEM:
                raise DamagedFile
            elements = {}
            end_of_item = (
                end if length_of_item == UNDEFINED else self._stream.tell() + length_of_item
            )
            while self._stream.tell() < end_of_item:
                tag, vr, length_of_element = self._next(implicit=self._implicit)
                if tag == ITEM_ENDS:
                    break
                if tag not in allowed:
                    self._skip(vr, length_of_element)
                elif (value := self._value(vr, length_of_element, *allowed[tag])) is not None:
                    elements[tag] = value
            items.append(elements)
        else:
            if length == UNDEFINED:
                raise DamagedFile
        return items

    def _elements(self, until: Callable[[int], bool]) -> Iterator[tuple[int, bytes, int]]:
        """Yield tag, value representation and length of the outermost elements; the caller moves
        the stream past the value.
        """
        while True:
            at = self._stream.tell()
            start = self._stream.read(8)
            if not start:
                return
            self._stream.seek(at)
            tag, vr, length = self._next(implicit=self._implicit)
            if until(tag):
                self._stream.seek(at)
                return
            if tag in (ITEM, ITEM_ENDS, SEQUENCE_ENDS):
                raise DamagedFile
            yield tag, vr, length

    def _next(self, *, implicit: bool) -> tuple[int, bytes, int]:
        """Read an element's tag, value representation and length."""
        self._budget -= 1
        if self._budget < 0:
            raise DamagedFile
        self._shared_budget.spend_part()
        start = read_exactly(self._stream, 8)
        group, element, vr, length = unpack(f"{self._order}HH2sH", start)
        # Items have no value representation; some writers omit it elsewhere too.
        if implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
            (length,) = unpack(f"{self._order}I", start[4:])
            vr = b"UN"
        elif vr in LONG_VRS:
            (length,) = unpack(f"{self._order}I", read_exactly(self._stream, 4))
        return group << 16 | element, vr, length

    def _skip(self, vr: bytes, length: int) -> None:
        """Skip a value; one of undefined length is a sequence, which is parsed to find its end."""
        if length != UNDEFINED:
            self._stream.seek(length, 1)
            return
        nested = [self._implicit or vr == b"UN"]  # PS3.5 6.2.2: an unknown VR means implicit.
        while nested:
            tag, vr, length = self._next(implicit=nested[-1])
            if tag in (ITEM_ENDS, SEQUENCE_ENDS):
                nested.pop()
            elif length == UNDEFINED:
                nested.append(nested[-1] or (vr == b"UN" and tag != ITEM))
            else:
                self._stream.seek(length, 1)

    def _text(self, tag: int) -> str:
        value = self._seen.get(tag, self._kept.get(tag, b""))
        return _as_text(value) if isinstance(value, bytes) else ""

    def _decimals(self, tag: int, count: int) -> tuple[float, ...]:
        """Return this many numbers written as text; empty if they are missing."""
        return _numbers_in(self._text(tag), count)

    def _decimal(self, tag: int) -> float | None:
        return next(iter(self._decimals(tag, 1)), None)

    def _frame_positions(self) -> Iterator[tuple[float, ...]]:
        for frame in self._kept.get(PER_FRAME, []):
            for place in frame.get(PLANE_POSITION, [])[:1]:
                yield _numbers_in(_as_text(place.get(POSITION, b"")), 3)

    def _image_kind(self) -> ImageKind:
        """Return what the image is; a localizer if the file or each of its frames is marked so."""
        of_file = image_kind(self._text(0x00080008).split("\\"), self._text(0x00080016))
        shared = [_frame_kind(item) for item in self._kept.get(SHARED, [])[:1]]
        usual = shared[0] if shared else None
        of_frames = {_frame_kind(item) or usual for item in self._kept.get(PER_FRAME, [])}
        if of_file is not ImageKind.SLICE or (of_frames or {usual}) != {ImageKind.LOCALIZER}:
            return of_file
        return ImageKind.LOCALIZER

    def _number(self, tag: int, otherwise: int) -> int:
        value = self._kept.get(tag)
        return (
            int(unpack(f"{self._order}H", value[:2])[0])
            if isinstance(value, bytes) and len(value) >= 2
            else otherwise
        )

    def _header(self, syntax: str) -> DicomHeader:
        return DicomHeader(
            transfer_syntax=syntax,
            sop_class=self._text(0x00080016),
            modality=self._text(0x00080060).upper(),
            image_type=tuple(word.strip().upper() for word in self._text(0x00080008).split("\\")),
            image_kind=self._image_kind(),
            patient=self._text(0x00100020),
            study=self._text(0x0020000D),
            series=self._text(0x0020000E),
            instance=self._text(0x00080018),
            concatenation=self._text(0x00209161),
            number=self._decimal(0x00200013),
            acquisition=self._decimal(0x00200012),
            time=self._text(0x00080032) or self._text(0x00080033),
            technique=(
                *(self._text(tag) for tag in (KERNEL, FILTER)),
                # 120 and 120.0 are the same voltage.
                *(
                    "".join(f"{number:g}" for number in self._decimals(tag, 1))
                    for tag in (VOLTAGE, TEMPORAL_POSITION)
                ),
                *self._text(0x00080008).split("\\")[2:],
            ),
            position=self._decimals(POSITION, 3),
            orientation=self._decimals(0x00200037, 6),
            location=self._decimal(0x00201041),
            thickness=self._decimal(0x00180050),
            frame_positions=tuple(self._frame_positions()),
            series_number=self._text(0x00200011),
            series_description=self._text(0x0008103E),
            study_description=self._text(0x00081030),
            protocol=self._text(0x00181030),
            body_part=self._text(0x00180015),
            kernel=_as_text(self._kept.get(KERNEL, b"")),
            samples=self._number(0x00280002, 1),
            frames=self._text(0x00280008),
            rows=self._number(0x00280010, 0),
            columns=self._number(0x00280011, 0),
            has_burned_in_text=self._text(0x00280301) == "YES",
            has_pixels=self._pixels is not None,
        )


@dataclass(frozen=True)
class Meta:
    """The SOP class, SOP instance and transfer syntax from a DICOM file's meta (PS3.10, 7.1)."""

    sop_class: str = ""
    sop_instance: str = ""
    transfer_syntax: str = ""


def meta_of(stream: IO[bytes]) -> Meta | None:
    """Return the file meta of a file; None if it has no preamble and therefore no file meta.
    Nothing else is read.
    """
    stream.seek(0)
    head = stream.read(META_BYTES)
    if head[128:132] != b"DICM":
        return None
    elements: dict[int, str] = {}
    at = 132
    while at + 12 <= len(head):
        group, element, vr, length = unpack("<HH2sH", head[at : at + 8])
        if group != 2:
            break
        at += 8
        if vr in LONG_VRS:
            (length,) = unpack("<I", head[at : at + 4])
            at += 4
        elements[element] = _as_text(head[at : at + length])
        at += length
    return Meta(*(elements.get(element, "")[:64] for element in (0x02, 0x03, 0x10)))


def is_dicom(stream: IO[bytes]) -> bool:
    """True if a file is a DICOM file."""
    stream.seek(0)
    return start_of_data(stream.read(START_BYTES)) is not None


def start_of_data(head: bytes) -> int | None:
    """Return where the elements of a DICOM file begin, judging by its first `START_BYTES`: after
    the preamble, or immediately if there is none or only its last word; None if this is not a DICOM
    file.
    """
    if head[128:132] == b"DICM":
        return 132
    if head.startswith(b"DICM"):
        return 4
    if len(head) < 12:
        return None
    group, element, vr, _ = unpack("<HH2sH", head[:8])
    (length,) = unpack("<I", head[4:8])
    is_first = (group == 2 and element <= 0x10) or (group == 8 and element <= 0x18)
    is_explicit = vr in (b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"SH", b"LO")
    return 0 if is_first and (is_explicit or (group == 8 and length <= 256)) else None


def whole_number(text: str) -> int | None:
    """Return the number in an integer string, which has at most 12 characters (PS3.5 6.2); None for
    any other text.
    """
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,12}", text.strip(" \0")) else None


def _frame_kind(item: Mapping[int, Any]) -> ImageKind | None:
    """Return what a frame is by its functional groups; None if they do not say."""
    words = [
        _as_text(kind[FRAME_TYPE]).split("\\")
        for kind in item.get(TYPE_OF_FRAME, [])[:1]
        if FRAME_TYPE in kind
    ]
    return image_kind(words[0]) if words else None


def _numbers_in(text: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split("\\"))
    except ValueError:
        return ()
    return numbers if len(numbers) == count and all(map(isfinite, numbers)) else ()


def _as_decimals(vr: bytes, value: bytes, order: str) -> bytes:
    """Return binary numbers as text, for an element that usually is text."""
    form = NUMBER_VRS[vr]
    count = len(value) // calcsize(form)
    if not count or count * calcsize(form) != len(value):
        return b""
    return "\\".join(f"{number:.10g}" for number in unpack(f"{order}{count}{form}", value)).encode()


def _as_text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


def as_element(tag: int, vr: bytes, value: bytes, *, order: str, implicit: bool) -> bytes:
    """Return an element of even length as bytes."""
    if len(value) % 2:
        value += b"\0" if vr in (b"UI", b"OB") else b" "
    start = pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return start + pack(f"{order}I", len(value)) + value
    if vr in LONG_VRS:
        return start + vr + b"\0\0" + pack(f"{order}I", len(value)) + value
    return start + vr + pack(f"{order}H", len(value)) + value
