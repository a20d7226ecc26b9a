"""How stored numbers become Hounsfield units (HU), for every file format: from the file's tags, and
from what air, tissue and bone look like in all slices of the scan.

The tags are used as long as they are plausible for a head. Otherwise the interpretation that shows
air at -1000 HU, soft tissue and nothing impossible is used, with a note for the user. If two
interpretations fit, the scan is refused with a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ml.errors import ImageError
from ml.scans.slices import FloatArray

AIR_HU = -1000.0
# what 12 bits of CT can say; beyond lie markers of pixels outside the scanned circle, and metal
LOWEST_HU, HIGHEST_HU = -1024.0, 4095.0
SOFT_HU = (-20.0, 100.0)  # brain, blood, muscle
NOT_AIR_HU = -300.0
AIR_REACH_HU, AIR_REACH_AS_SAID_HU = 10.0, 30.0
BRIGHTEST_CORNER_HU = 300.0  # what fills the corners of a slice is not bone
FAT_HU = -100.0  # a head that shows nothing below it shows neither fat nor air
LEAST_SOFT = 0.3  # of what is not air, in a head whose numbers are read rightly
LEAST_SOFT_AS_SAID = 0.05  # the same, where the tags are believed
MOST_IMPOSSIBLE = 0.001  # of all pixels; metal is seldom more
OFFSETS = (1024.0, 1000.0, 32768.0)
SAMPLE_PX, SAMPLE_SLICES = 128, 48  # that are looked at: of a slice's side, of a scan

# HU of which only 0 to some end was kept, as brain windows are: that end, the least share of pixels
# at both ends, and where the brain lies between them
CLIPPED_AT = (70.0, 130.0)
CLIPPED_IN_8_BITS = 255.0
LEAST_CLIPPED = 0.01
CLIPPED_BRAIN = (20.0, 60.0)

DICOM, NIFTI = "DICOM file", "NIfTI file"
GIVE_DICOM = "give the DICOM files"

Stored = NDArray[np.generic]
Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Claim:
    """What a container says of its numbers.

    Attributes:
        container: what the user calls it: "DICOM file".
        slope, intercept: of the rescaling to HU; None where it says nothing.
        bits: how many are stored of each number; 8 or less may be grays.
        signed: numbers may be negative.
        white_is_low: black and white are exchanged when shown (MONOCHROME1).
        unit_is_known: False where it names its unit by a word that nobody knows.
    """

    container: str
    slope: float | None = 1.0
    intercept: float | None = 0.0
    bits: int = 16
    signed: bool = True
    white_is_low: bool = False
    unit_is_known: bool = True


@dataclass(frozen=True)
class Scale:
    """How stored numbers become values.

    Attributes:
        unit: what the values are: Hounsfield units, or gray 0..1.
        slope, intercept: value = number x slope + intercept.
        wraps_from, wraps_by: numbers from `wraps_from` on are negative ones to which `wraps_by` was
            added; None where none are.
        turned_at: black and white are exchanged: numbers are first taken from this one; None where
            they are not.
        border: the number that stands for "not scanned" though no tag says so.
    """

    unit: Literal["hu", "display"] = "hu"
    slope: float = 1.0
    intercept: float = 0.0
    wraps_from: float | None = None
    wraps_by: float = 0.0
    turned_at: float | None = None
    border: float | None = None

    def values(self, stored: Stored) -> Numbers:
        """Return the values of stored numbers, not clipped."""
        # what is too large for a float is clipped later
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = stored.astype(np.float64)
            if self.turned_at is not None:
                numbers = self.turned_at - numbers
            if self.wraps_from is not None:
                numbers = np.where(numbers >= self.wraps_from, numbers - self.wraps_by, numbers)
            return numbers * self.slope + self.intercept

    def pixels(self, stored: Stored, padding: Mask | None = None) -> FloatArray:
        """Return the pixels of a slice of stored numbers: HU in -1024..4095, air where nothing was
        scanned; or gray in 0..1.
        """
        values = np.nan_to_num(self.values(stored), nan=AIR_HU if self.unit == "hu" else 0.0)
        if self.unit == "display":
            return np.clip(values, 0, 1).astype(np.float32)
        if self.border is not None:
            values = np.where(stored == self.border, AIR_HU, values)
        if padding is not None:
            values = np.where(padding, AIR_HU, values)
        return np.clip(values, LOWEST_HU, HIGHEST_HU).astype(np.float32)


@dataclass(frozen=True)
class Look:
    """What a scale makes of a scan.

    Attributes:
        lowest_hu: what all but a thousandth of the pixels lie above.
        impossible: share of pixels that no number of CT can be.
        soft: share of what is not air that has the HU of soft tissue.
        shows_air: a hundredth of all pixels or more lie around -1000 HU.
    """

    lowest_hu: float
    impossible: float
    soft: float
    shows_air: bool

    @property
    def is_head(self) -> bool:
        """True if a head looks so."""
        return self.soft >= LEAST_SOFT and self.impossible <= MOST_IMPOSSIBLE and self.shows_air

    @property
    def may_be_head(self) -> bool:
        """True unless the pixels contradict: none lies below fat, next to none is soft tissue, or
        some are impossible.
        """
        return (
            self.soft >= LEAST_SOFT_AS_SAID
            and self.impossible <= MOST_IMPOSSIBLE
            and self.lowest_hu < FAT_HU
        )


def scale_of(
    stored: Sequence[Stored], paddings: Sequence[Mask | None], claim: Claim
) -> tuple[Scale, list[str]]:
    """Return the scale of all slices of a scan, and sentences about what was assumed.

    Args:
        stored: the numbers of each slice, (rows, columns).
        paddings: of each, where the file says that nothing was scanned; None where it does not.
        claim: what the files say.

    Raises:
        ImageError: the numbers are no HU, or they can be read in two ways.
    """
    if claim.slope == 0:
        raise ImageError(
            f"The {claim.container}'s rescale slope is 0, so its pixels have no Hounsfield units."
        )
    sample, corner = _sample_of(stored, paddings), _corner_of(stored)
    if (gray := _as_gray(sample, claim)) is not None:
        return gray
    scale, notes = _as_said(stored, sample, claim)
    scale = _with_border(scale, sample, corner)
    look = look_at(scale, sample)
    if look.is_head or (claim.unit_is_known and claim.intercept is not None and look.may_be_head):
        if not claim.unit_is_known:
            notes.append(
                f"The {claim.container} does not say in a known word that its values are"
                " Hounsfield units; they look like it."
            )
        return scale, notes
    if not claim.unit_is_known:
        raise ImageError(f"The {claim.container}'s values are not Hounsfield units.")
    return _repaired(scale, notes, sample, corner, claim)


def look_at(scale: Scale, sample: Numbers) -> Look:
    """Return what a scale makes of some numbers of a scan."""
    values = scale.values(sample if scale.border is None else sample[sample != scale.border])
    if not values.size:
        return Look(0.0, 1.0, 0.0, shows_air=False)
    air = values[(values < -700) & (values > -1100)]
    return Look(
        float(np.quantile(values, 0.001)),
        float((values > HIGHEST_HU).mean()),
        soft_tissue_share(values),
        air.size >= 0.01 * values.size
        and abs(float(np.median(air)) - AIR_HU) <= AIR_REACH_AS_SAID_HU,
    )


def soft_tissue_share(values_hu: NDArray[np.floating]) -> float:
    """Return how much of what is not air has the HU of soft tissue, 0..1; 0 where all is air."""
    return _soft(values_hu[values_hu > NOT_AIR_HU])


def is_clipped_window(values: NDArray[np.floating]) -> bool:
    """True if values look like HU of which only 0 to about 80 or 100, or to 255, was kept: air and
    fat at one end, bone at the other, the brain at its own HU between them.
    """
    if not values.size or values.min() != 0:
        return False
    if not CLIPPED_AT[0] <= values.max() <= CLIPPED_AT[1] and values.max() != CLIPPED_IN_8_BITS:
        return False
    inner = values[(values > 0) & (values < values.max())]
    return bool(
        (values == values.max()).mean() >= LEAST_CLIPPED
        and (values == 0).mean() >= LEAST_CLIPPED
        and inner.size
        and CLIPPED_BRAIN[0] <= np.median(inner) <= CLIPPED_BRAIN[1]
    )


def hounsfield_in_16_bits(stored: NDArray[np.int64]) -> tuple[FloatArray | None, bool]:
    """Return the HU that a 16-bit picture's values (height, width) hold, and whether they are CT
    values at all; see `scale_from_air`.
    """
    scale, is_ct = scale_from_air(stored.astype(np.float64), bits=16)
    return (None if scale is None else scale.pixels(stored)), is_ct


def scale_from_air(numbers: Numbers, bits: int, slope: float = 1.0) -> tuple[Scale | None, bool]:
    """Return the scale of numbers of which nothing is said, and whether they are CT values at all.

    Programs save HU as signed numbers read as unsigned ones, or with 1024, 1000 or 32768 added.
    What was added follows from air, which lies at -1000 HU. Values whose air is cut off at zero fit
    1024 (a padded circle) as well as 1000, and the 24 HU between these are the difference between
    brain and blood: then there is no scale though the second answer is True.
    """
    unclear = False
    half = 2.0 ** (bits - 1) if bits == 16 else 2.0**bits - 1100
    candidates = [
        Scale(slope=slope, wraps_from=half, wraps_by=2.0**bits),
        *(Scale(slope=slope, intercept=-offset) for offset in OFFSETS),
    ]
    for number, candidate in enumerate(candidates):
        values = candidate.values(numbers)
        if (values > HIGHEST_HU).any() or (
            soft_tissue_share(np.maximum(values, LOWEST_HU)) < LEAST_SOFT
        ):
            continue
        lowest = float(values.min())
        above = values[(values > lowest) & (values < -700)]
        # Unsigned numbers that begin at 0 may have been cut off there.
        air_is_lowest = (number == 0 or numbers.min() > 0) and abs(lowest - AIR_HU) <= AIR_REACH_HU
        air_is_above = (
            above.size >= 0.01 * values.size
            and abs(float(np.median(above)) - AIR_HU) <= AIR_REACH_HU
        )
        if air_is_lowest or air_is_above:
            wraps = number == 0 and bool((numbers >= half).any())
            return (candidate if wraps or number else replace(candidate, wraps_from=None)), True
        unclear = unclear or (number in (1, 2) and numbers.max() * slope <= HIGHEST_HU)
    return None, unclear


def _as_gray(sample: Numbers, claim: Claim) -> tuple[Scale, list[str]] | None:
    """Return the scale of numbers that are grays, or HU in 8 bits; None where they are neither."""
    slope, intercept = claim.slope or 1.0, claim.intercept or 0.0
    said = Scale(slope=slope, intercept=intercept)
    values = said.values(sample)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    rescales = (slope, intercept) != (1.0, 0.0)
    # a slope is a float: 1000 thousandths are a little more than 1
    if claim.container == NIFTI and (claim.bits > 8 or rescales) and low >= 0 and high < 1.001:
        return replace(said, unit="display"), [
            "The NIfTI file's values range from 0 to 1, so it was read as pictures without"
            " Hounsfield units."
        ]
    if claim.bits > 8:
        return None
    between = values[(values > low) & (values < high)]
    holds_hu = rescales and low <= 0 and high >= SOFT_HU[1] and _soft(between) >= LEAST_SOFT
    if holds_hu or is_clipped_window(values):
        return said, [
            f"The {claim.container}'s 8-bit values are Hounsfield units from {low:g} to {high:g};"
            " what lay beyond was cut off."
        ]
    if claim.container == NIFTI and (rescales or claim.signed):
        return None
    kind = (
        "pixels, so it was read as a picture"
        if claim.container == DICOM
        else ("voxels, so it was read as pictures")
    )
    return (
        Scale("display", 1 / 255, turned_at=255.0 if claim.white_is_low else None),
        [f"The {claim.container} has 8-bit {kind} without Hounsfield units."],
    )


def _as_said(stored: Sequence[Stored], sample: Numbers, claim: Claim) -> tuple[Scale, list[str]]:
    """Return the scale that the tags say, or all but universal habits where they say nothing."""
    notes: list[str] = []
    scale = Scale(slope=1.0 if claim.slope is None else claim.slope)
    plain = replace(scale, intercept=claim.intercept or 0.0)
    if claim.white_is_low and _air_is_brightest(stored) and not look_at(plain, sample).is_head:
        # MONOCHROME1 speaks of display only (PS3.3 C.7.6.3.1.2), but some exporters turn the values
        # over as well.
        scale = replace(scale, turned_at=-1.0 if claim.signed else 2.0**claim.bits - 1)
        notes.append(f"The {claim.container}'s gray values were inverted; this was corrected.")
    numbers = sample if scale.turned_at is None else scale.turned_at - sample
    if claim.intercept is None:
        # CT requires the tag. Values that are never negative are stored from -1024 HU on, by all
        # but universal habit.
        assumed = 0.0 if numbers.min(initial=0.0) < 0 else -1024.0
        notes.append(
            f"The {claim.container} has no rescale values; an intercept of {assumed:g} HU was"
            " assumed."
        )
        return replace(scale, intercept=assumed), notes
    if (
        claim.bits == 12
        and not claim.signed
        and claim.intercept == 0
        and numbers.max(initial=0.0) >= 3096
    ):
        # Some scanners' files hold signed HU in unsigned 12 bits and lost the intercept: air shows
        # as 3096 (RSNA 2019 has hundreds).
        notes.append(
            f"The {claim.container}'s negative values were wrapped around; they were put right."
        )
        return replace(scale, wraps_from=3096.0, wraps_by=4096.0), notes
    return replace(scale, intercept=claim.intercept), notes


def _repaired(
    said: Scale, notes: list[str], sample: Numbers, corner: float | None, claim: Claim
) -> tuple[Scale, list[str]]:
    """Return another scale than that of the tags where one fits, else theirs.

    Raises:
        ImageError: the numbers are those of CT, and two scales fit.
    """
    bits = 16 if claim.container != DICOM else min(max(claim.bits, 12), 16)
    samples = [sample] if corner is None else [sample, sample[sample != corner]]
    for numbers in samples:
        if not numbers.size:
            continue
        if said.turned_at is not None:
            numbers = said.turned_at - numbers
        found, is_ct = scale_from_air(numbers, bits, said.slope)
        if found is not None:
            found = _with_border(replace(found, turned_at=said.turned_at), sample, corner)
            if replace(found, border=None) == replace(said, border=None):
                return said, notes
            turned = notes[:1] if said.turned_at is not None else []
            return found, [*turned, _what_was_repaired(found, claim)]
        lowest = numbers.min() * said.slope + said.intercept
        if is_ct and claim.intercept is not None and lowest >= 0:
            instead = "please export it again" if claim.container == DICOM else GIVE_DICOM
            raise ImageError(
                f"The {claim.container} contains CT values with an unknown offset; {instead}."
            )
    return said, notes


def _what_was_repaired(scale: Scale, claim: Claim) -> str:
    if scale.wraps_from is not None:
        return (
            f"The {claim.container}'s negative values were stored as large ones; they were put"
            " right."
        )
    if scale.intercept == 0:
        return (
            f"The {claim.container}'s values are Hounsfield units already; its rescale intercept"
            " was not applied."
        )
    return (
        f"The {claim.container}'s values are Hounsfield units with {-scale.intercept:g} added,"
        " which was taken off."
    )


def _with_border(scale: Scale, sample: Numbers, corner: float | None) -> Scale:
    """Return the scale with what fills the corners taken for "not scanned", where it is as bright
    as bone and what it leaves may be a head.
    """
    if corner is None or scale.values(np.array([corner]))[0] <= BRIGHTEST_CORNER_HU:
        return scale
    bordered = replace(scale, border=corner)
    look = look_at(bordered, sample)
    is_head = look.soft >= LEAST_SOFT and look.impossible <= MOST_IMPOSSIBLE
    return bordered if is_head else scale


def _sample_of(stored: Sequence[Stored], paddings: Sequence[Mask | None]) -> Numbers:
    """Return some numbers of a scan, without padding and without what is no number."""
    parts = []
    for index in np.unique(np.linspace(0, len(stored) - 1, SAMPLE_SLICES).round().astype(int)):
        numbers, padding = stored[index], paddings[index]
        every = np.s_[
            :: max(1, numbers.shape[0] // SAMPLE_PX), :: max(1, numbers.shape[1] // SAMPLE_PX)
        ]
        shown = numbers[every].astype(np.float64)
        part = shown.ravel() if padding is None else shown[~padding[every]]
        parts.append(part[np.isfinite(part)])
    return np.concatenate(parts)


def _corner_of(stored: Sequence[Stored]) -> float | None:
    """Return the number that fills at least three corners of half of the slices; None where none
    does.
    """
    votes = Counter[float]()
    for numbers in stored:
        corners = Counter(float(number) for number in numbers[[0, 0, -1, -1], [0, -1, 0, -1]])
        number, times = corners.most_common(1)[0]
        if times >= 3:
            votes[number] += 1
    if not votes:
        return None
    number, times = votes.most_common(1)[0]
    return number if 2 * times >= len(stored) else None


def _air_is_brightest(stored: Sequence[Stored]) -> bool:
    """True if in most slices the rim, which shows air, is brighter than the slice as a whole."""
    bright = [
        np.median(np.concatenate([one[0], one[-1], one[:, 0], one[:, -1]])) > one.mean()
        for one in stored
    ]
    return 2 * sum(map(bool, bright)) > len(bright)


def _soft(values_hu: NDArray[np.floating]) -> float:
    if not values_hu.size:
        return 0.0
    return float(((values_hu >= SOFT_HU[0]) & (values_hu <= SOFT_HU[1])).mean())
