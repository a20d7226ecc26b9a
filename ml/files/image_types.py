"""What a CT image is according to its image type (PS3.3 C.7.6.1.1.2 and C.8.15.3.8) and SOP class:
a slice, or something else that a series may contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum


class ImageKind(StrEnum):
    """What an image is. `MADE` images are made from other slices: reformations, projections, and
    captures of a screen that may show one slice.
    """

    SLICE = "slice"
    LOCALIZER = "localizer"
    PAGE = "page"
    MADE = "made"


LOCALIZERS = (
    "LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM", "SCANOSCOPE", "TOP",
)  # fmt: skip
PAGES = (
    "SCREEN SAVE", "SCREEN_SAVE", "SCREEN CAPTURE", "DOSE", "DOSE_INFO", "DOSE INFO",
    "DOSE REPORT", "DOSE_REPORT", "PROTOCOL", "PROT",
)  # fmt: skip
MADE = ("MPR", "REFORMATTED", "MIP", "MIN_IP", "MAX_IP", "AVERAGE", "PROJECTION IMAGE")
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""The SOP class of secondary captures, and the beginning of those of their multi-frame kinds."""
OF_MANUFACTURER = re.compile(r"(CT_SOM\d*|CSA) ")
"""Siemens writes “CT_SOM5 MPR” and “CT_SOM5 PROT”."""


def plain_word(word: str) -> str:
    """Return a word of an image type without a manufacturer's prefix."""
    return OF_MANUFACTURER.sub("", word.strip(" \0").upper())


def image_kind(words: Iterable[object], sop_class: str = "") -> ImageKind:
    """Return what an image is, by the words of its image type or frame type."""
    plain = {plain_word(str(word)) for word in words}
    if plain & set(LOCALIZERS):
        return ImageKind.LOCALIZER
    if plain & set(PAGES):
        return ImageKind.PAGE
    is_capture = sop_class == CAPTURE or sop_class.startswith(f"{CAPTURE}.")
    return ImageKind.MADE if is_capture or plain & set(MADE) else ImageKind.SLICE
