"""Convert stored pixel values to Hounsfield units (HU), for every file format, based on the file's
tags and on the appearance of air, tissue and bone in all slices of the scan.

The tags are used if they are plausible for a head. Otherwise the scale is used that puts air at
-1000 HU, shows soft tissue and yields no impossible value, with a note for the user. If two scales
fit, the scan is refused with an error message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.errors import ImageError
from ml.scans.slices import FloatArray

AIR_HU = -1000.0
# range of 12-bit CT; values beyond are markers of pixels outside the scanned circle, or metal
LOWEST_HU, HIGHEST_HU = -1024.0, 4095.0
SOFT_HU = (-20.0, 100.0)  # brain, blood, muscle
# the brightest value of the extended scale for metal; values beyond are markers
BRIGHTEST_METAL_HU = 30710.0
NOT_AIR_HU = -300.0
AIR_RANGE_HU = (-1100.0, -700.0)
# maximum deviation of air from -1000 HU: for a scale that is derived from air, and for any
# plausible one
AIR_TOLERANCE_HU, AIR_TOLERANCE_PLAUSIBLE_HU = 10.0, 30.0
BRIGHTEST_CORNER_HU = 300.0  # brighter corners are filled with a marker, not with anatomy
LEAST_CORNER = 0.002  # minimum share of a slice that a marker fills from a corner
FAT_HU = -100.0  # a scan without values below it shows neither fat nor air
LEAST_SOFT = 0.3  # minimum share of soft tissue among pixels that are not air, in a head
LEAST_SOFT_WITH_TAGS = 0.05  # the same, if complete tags support the scale
MOST_IMPOSSIBLE = 0.001  # maximum share of impossible values; metal seldom covers more
AMBIGUOUS_OFFSETS = (1024.0, 1000.0)
OFFSETS = (*AMBIGUOUS_OFFSETS, 32768.0)
DARKEST_BRAIN_HU = 18.0  # minimum median of soft tissue in a head
AIR_WRAPPED_IN_12_BITS = 3096.0  # -1000 HU + 4096
SAMPLE_PX, SAMPLE_SLICES = 128, 48  # pixels per side of a slice, slices per scan

# HU clipped to 0 and an upper end, as in brain windows: the range of the upper end, the minimum
# share of pixels at each end, and the range of the median of the brain in between
CLIPPED_AT = (70.0, 130.0)
CLIPPED_IN_8_BITS = 255.0
LEAST_CLIPPED = 0.01
CLIPPED_BRAIN = (20.0, 60.0)

DICOM, NIFTI = "DICOM file", "NIfTI file"

Stored = NDArray[np.generic]
Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Claim:
    """The tags of a file that describe its stored numbers.

    Attributes:
        container: the user's term for the file, such as "DICOM file".
        slope, intercept: of the rescaling to HU; None if missing.
        bits: stored bits per number; values of 8 bits or fewer may be gray levels.
        signed: numbers may be negative.
        white_is_low: low values are displayed white (MONOCHROME1).
        unit_is_known: False if the tag for the unit has an unknown value.
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
    """The conversion of stored numbers to values.

    Attributes:
        unit: of the values: Hounsfield units, or gray 0..1.
        slope, intercept: value = number x slope + intercept.
        wraps_from, wraps_by: numbers from `wraps_from` on are negative numbers to which `wraps_by`
            was added; None if no numbers are wrapped.
        inverted_from: stored numbers are first subtracted from this number; None if they are not
            inverted.
        border: the number that marks pixels that were not scanned, although no tag says so.
    """

    unit: Literal["hu", "display"] = "hu"
    slope: float = 1.0
    intercept: float = 0.0
    wraps_from: float | None = None
    wraps_by: float = 0.0
    inverted_from: float | None = None
    border: float | None = None

    def values(self, stored: Stored) -> Numbers:
        """Return the values of stored numbers, not clipped."""
        # values too large for a float are clipped later
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = stored.astype(np.float64)
            if self.inverted_from is not None:
                numbers = self.inverted_from - numbers
            if self.wraps_from is not None:
                numbers = np.where(numbers >= self.wraps_from, numbers - self.wraps_by, numbers)
            return numbers * self.slope + self.intercept

    def pixels(self, stored: Stored, padding: Mask | None = None) -> FloatArray:
        """Return the pixels of a slice of stored numbers: HU in -1024..4095, with air in areas that
        were not scanned; or gray in 0..1.
        """
        values = np.nan_to_num(self.values(stored), nan=AIR_HU if self.unit == "hu" else 0.0)
        if self.unit == "display":
            return np.clip(values, 0, 1).astype(np.float32)
        if self.border is not None:
            values = np.where(stored == self.border, AIR_HU, values)
        if padding is not None:
            values = np.where(padding, AIR_HU, values)
        _blacken_corners(values, stored)
        values[values > BRIGHTEST_METAL_HU] = AIR_HU
        return np.clip(values, LOWEST_HU, HIGHEST_HU).astype(np.float32)


@dataclass(frozen=True)
class AirFit:
    """The result of `scale_from_air`.

    Attributes:
        scale: None if no scale fits, or more than one.
        is_ambiguous: the numbers are CT values, but more than one scale fits.
    """

    scale: Scale | None = None
    is_ambiguous: bool = False


@dataclass(frozen=True)
class ScalePlausibility:
    """Properties of a scan under an assumed scale.

    Attributes:
        lowest_hu: the 0.1st percentile of the values.
        impossible: share of pixels above the range of CT.
        soft: share of the pixels other than air that have the HU of soft tissue.
        shows_air: at least 1% of the pixels lie around -1000 HU.
    """

    lowest_hu: float
    impossible: float
    soft: float
    shows_air: bool

    @property
    def is_head(self) -> bool:
        """True if the values are those of a head."""
        return self.soft >= LEAST_SOFT and self.impossible <= MOST_IMPOSSIBLE and self.shows_air

    @property
    def may_be_head(self) -> bool:
        """True unless the values rule out a head: none lies below fat, almost none is soft tissue,
        or too many are impossible.
        """
        return (
            self.soft >= LEAST_SOFT_WITH_TAGS
            and self.impossible <= MOST_IMPOSSIBLE
            and self.lowest_hu < FAT_HU
        )


def scale_of(
    stored: Sequence[Stored], paddings: Sequence[Mask | None], claim: Claim
) -> tuple[Scale, list[str]]:
    """Return the scale of all slices of a scan, and notes about assumptions.

    Args:
        stored: the numbers of each slice, (rows, columns).
        paddings: a mask for each slice of the pixels that the file marks as not scanned, or None.
        claim: the tags of the files.

    Raises:
        ImageError: the numbers are not HU, or more than one scale fits.
    """
    if claim.slope == 0:
        raise ImageError(
            f"The {claim.container}'s rescale slope is 0, so its pixels have no Hounsfield units."
        )
    sample, corner = _sample_of(stored, paddings), _corner_of(stored)
    if (gray := _as_gray(sample, claim)) is not None:
        return gray
    scale, notes = _scale_from_tags(stored, sample, claim)
    scale = _with_border(scale, sample, corner)
    plausibility = assess_scale(scale, sample)
    has_complete_tags = claim.unit_is_known and claim.intercept is not None
    may_be_head = has_complete_tags and plausibility.may_be_head
    if not plausibility.is_head and scale.slope < 0:
        rising = _with_rising_slope(stored, paddings, claim, sample)
        if rising is not None:
            return rising
    if plausibility.is_head or may_be_head:
        if not claim.unit_is_known:
            notes.append(
                f"The {claim.container} does not identify its values as Hounsfield units; they"
                " appear to be."
            )
        return scale, notes
    if not claim.unit_is_known:
        raise ImageError(f"The {claim.container}'s values are not Hounsfield units.")
    return _repaired(scale, notes, sample, corner, claim)


def assess_scale(scale: Scale, sample: Numbers) -> ScalePlausibility:
    """Return the plausibility of a scale for a sample of a scan's stored numbers."""
    values = scale.values(sample if scale.border is None else sample[sample != scale.border])
    if not values.size:
        return ScalePlausibility(0.0, 1.0, 0.0, shows_air=False)
    return ScalePlausibility(
        float(np.quantile(values, 0.001)),
        float((values > HIGHEST_HU).mean()),
        soft_tissue_share(values),
        _is_air(
            values[(values > AIR_RANGE_HU[0]) & (values < AIR_RANGE_HU[1])],
            values.size,
            AIR_TOLERANCE_PLAUSIBLE_HU,
        ),
    )


def soft_tissue_share(values_hu: NDArray[np.floating]) -> float:
    """Return the share of soft tissue among the values that are not air, 0..1; 0 if all are air."""
    return _soft_share(values_hu[values_hu > NOT_AIR_HU])


def is_clipped_window(values: NDArray[np.floating]) -> bool:
    """Return whether values look like HU clipped to 0 and about 80 or 100, or 255: air and fat at
    one end, bone at the other, and brain at its own HU in between.
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


def scale_from_air(numbers: Numbers, bits: int, slope: float = 1.0) -> AirFit:
    """Return the scale of untagged numbers (n,) that puts air at -1000 HU.

    Some programs save HU as signed numbers that are read as unsigned, or with 1024, 1000 or 32768
    added. The offset follows from air, which has -1000 HU. If air is clipped at zero, both 1024 (a
    padded circle) and 1000 fit, and the 24 HU between them are the difference between brain and
    blood: the result is then ambiguous.
    """
    # With fewer than 16 bits, positive CT values may use the sign bit. Only numbers that would be
    # -1100 HU (the lowest value of noisy air) or more are then read as negative.
    first_negative = 2.0 ** (bits - 1) if bits == 16 else 2.0**bits + AIR_RANGE_HU[0]
    signed = Scale(slope=slope, wraps_from=first_negative, wraps_by=2.0**bits)
    shifted = [Scale(slope=slope, intercept=-offset) for offset in OFFSETS]
    is_ambiguous = False
    for candidate in (signed, *shifted):
        values = candidate.values(numbers)
        if (values > HIGHEST_HU).any() or (
            soft_tissue_share(np.maximum(values, LOWEST_HU)) < LEAST_SOFT
        ):
            continue
        lowest = float(values.min())
        # Unsigned numbers that start at 0 may have been clipped there.
        is_clipped = candidate is not signed and numbers.min() <= 0
        air_is_lowest = not is_clipped and abs(lowest - AIR_HU) <= AIR_TOLERANCE_HU
        above = values[(values > lowest) & (values < AIR_RANGE_HU[1])]
        if air_is_lowest or _is_air(above, values.size, AIR_TOLERANCE_HU):
            if candidate is signed and not (numbers >= first_negative).any():
                candidate = replace(signed, wraps_from=None)
            return AirFit(candidate)
        if -candidate.intercept in AMBIGUOUS_OFFSETS and numbers.max() * slope <= HIGHEST_HU:
            is_ambiguous = True
    return AirFit(is_ambiguous=is_ambiguous)


def scale_from_air_in(stored: Stored) -> AirFit:
    """Return the scale of the untagged 16-bit numbers (rows, columns) of one slice that puts air
    at -1000 HU. The brightest number is a marker of pixels that were not scanned if it fills the
    corners and no scale fits with it.
    """
    numbers, corner = stored.astype(np.float64), _corner_of([stored])
    fit = scale_from_air(numbers, bits=16)
    if fit.scale is not None or fit.is_ambiguous or corner is None or corner < numbers.max():
        return fit
    inner = numbers[numbers != corner]
    fit_of_inner = scale_from_air(inner, bits=16) if inner.size else fit
    if fit_of_inner.scale is None:
        return fit_of_inner
    return AirFit(_with_border(fit_of_inner.scale, inner, corner))


def _is_air(values_hu: Numbers, count: int, tolerance_hu: float) -> bool:
    """Return whether these values are at least 1% of `count` pixels and their median is that of
    air.
    """
    return (
        values_hu.size >= max(0.01 * count, 1)
        and abs(float(np.median(values_hu)) - AIR_HU) <= tolerance_hu
    )


def _as_gray(sample: Numbers, claim: Claim) -> tuple[Scale, list[str]] | None:
    """Return the scale of gray levels or of HU in 8 bits; None if the numbers are neither."""
    slope, intercept = claim.slope or 1.0, claim.intercept or 0.0
    from_tags = Scale(slope=slope, intercept=intercept)
    values = from_tags.values(sample)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    rescales = (slope, intercept) != (1.0, 0.0)
    # rounding of the slope may yield slightly more than 1
    if claim.container == NIFTI and (claim.bits > 8 or rescales) and low >= 0 and high < 1.001:
        return replace(from_tags, unit="display"), [
            "The NIfTI file's values range from 0 to 1, so it was read as images without"
            " Hounsfield units."
        ]
    if claim.bits > 8:
        return None
    between = values[(values > low) & (values < high)]
    holds_hu = rescales and low <= 0 and high >= SOFT_HU[1] and _soft_share(between) >= LEAST_SOFT
    if holds_hu or is_clipped_window(values):
        return from_tags, [
            f"The {claim.container}'s 8-bit values are Hounsfield units from {low:g} to {high:g};"
            " values beyond this range were clipped."
        ]
    if claim.container == NIFTI and (rescales or claim.signed):
        return None
    kind = (
        "pixels, so it was read as an image"
        if claim.container == DICOM
        else ("voxels, so it was read as images")
    )
    return (
        Scale("display", 1 / 255, inverted_from=255.0 if claim.white_is_low else None),
        [f"The {claim.container} has 8-bit {kind} without Hounsfield units."],
    )


def _scale_from_tags(
    stored: Sequence[Stored], sample: Numbers, claim: Claim
) -> tuple[Scale, list[str]]:
    """Return the scale that the tags give, with common defaults for missing tags, and notes."""
    notes: list[str] = []
    scale = Scale(slope=1.0 if claim.slope is None else claim.slope)
    plain = replace(scale, intercept=claim.intercept or 0.0)
    if claim.white_is_low and _air_is_brightest(stored) and not assess_scale(plain, sample).is_head:
        # MONOCHROME1 concerns the display only (PS3.3 C.7.6.3.1.2), but some exporters also invert
        # the values.
        scale = replace(scale, inverted_from=-1.0 if claim.signed else 2.0**claim.bits - 1)
        notes.append(_inversion_note(claim))
    numbers = sample if scale.inverted_from is None else scale.inverted_from - sample
    if claim.intercept is None:
        # CT requires the tag. If values are never negative, the intercept is almost always -1024
        # HU, and rarely -1000 HU.
        assumed = 0.0 if numbers.min(initial=0.0) < 0 else -_likely_offset(numbers * scale.slope)
        notes.append(
            f"The {claim.container} has no rescale values; an intercept of {assumed:g} HU was"
            " assumed."
        )
        return replace(scale, intercept=assumed), notes
    if (
        claim.bits == 12
        and not claim.signed
        and claim.intercept == 0
        and numbers.max(initial=0.0) >= AIR_WRAPPED_IN_12_BITS
    ):
        # Some files hold signed HU in unsigned 12 bits without the intercept, so air is stored as
        # 3096 (RSNA 2019 has hundreds of them).
        notes.append(
            f"The {claim.container}'s negative values were wrapped around; this was corrected."
        )
        return replace(scale, wraps_from=AIR_WRAPPED_IN_12_BITS, wraps_by=4096.0), notes
    return replace(scale, intercept=claim.intercept), notes


def _likely_offset(numbers: Numbers) -> float:
    """Return the offset that was probably added to HU: 1024, unless the brain would then be as dark
    as water, but not with 1000.
    """
    with_1024, with_1000 = AMBIGUOUS_OFFSETS
    values = numbers - with_1024
    if _is_air(values[values < AIR_RANGE_HU[1]], values.size, AIR_TOLERANCE_HU):
        return with_1024
    dark, usual = (_median_of_soft_tissue(numbers - offset) for offset in AMBIGUOUS_OFFSETS)
    is_brain = dark < DARKEST_BRAIN_HU <= usual
    fits = is_brain and assess_scale(Scale(intercept=-with_1000), numbers).is_head
    return with_1000 if fits else with_1024


def _median_of_soft_tissue(values_hu: Numbers) -> float:
    soft = values_hu[(values_hu >= SOFT_HU[0]) & (values_hu <= SOFT_HU[1])]
    return float(np.median(soft)) if soft.size else 0.0


def _repaired(
    from_tags: Scale, notes: list[str], sample: Numbers, corner: float | None, claim: Claim
) -> tuple[Scale, list[str]]:
    """Return the scale that fits air, if there is one, else that of the tags; and notes.

    Raises:
        ImageError: the numbers are CT values, but more than one scale fits.
    """
    bits = 16 if claim.container != DICOM else min(max(claim.bits, 12), 16)
    is_inverted = from_tags.inverted_from is not None
    samples = [sample] if corner is None else [sample, sample[sample != corner]]
    for numbers in samples:
        if not numbers.size:
            continue
        if from_tags.inverted_from is not None:
            numbers = from_tags.inverted_from - numbers
        fit = scale_from_air(numbers, bits, from_tags.slope)
        if fit.scale is not None:
            scale = replace(fit.scale, inverted_from=from_tags.inverted_from)
            scale = _with_border(scale, sample, corner)
            if replace(scale, border=None) == replace(from_tags, border=None):
                return from_tags, notes
            inversion = [_inversion_note(claim)] if is_inverted else []
            return scale, [*inversion, _repair_note(scale, claim)]
        lowest = numbers.min() * from_tags.slope + from_tags.intercept
        if fit.is_ambiguous and claim.intercept is not None and lowest >= 0:
            advice = (
                "please export it again"
                if claim.container == DICOM
                else "upload the DICOM files instead"
            )
            raise ImageError(
                f"The {claim.container} contains CT values with an unknown offset; {advice}."
            )
    return from_tags, notes


def _inversion_note(claim: Claim) -> str:
    return f"The {claim.container}'s gray values were inverted; this was corrected."


def _repair_note(scale: Scale, claim: Claim) -> str:
    if scale.wraps_from is not None:
        return (
            f"The {claim.container}'s negative values were stored as large ones; this was"
            " corrected."
        )
    if scale.intercept == 0:
        return (
            f"The {claim.container}'s values are Hounsfield units already; its rescale intercept"
            " was not applied."
        )
    return (
        f"The {claim.container}'s values are Hounsfield units with {-scale.intercept:g} added,"
        " which was subtracted."
    )


def _with_border(scale: Scale, sample: Numbers, corner: float | None) -> Scale:
    """Return the scale with the number in the corners as the marker of pixels that were not
    scanned, if it is as bright as bone and the other numbers may be those of a head.
    """
    if corner is None or scale.values(np.array([corner]))[0] <= BRIGHTEST_CORNER_HU:
        return scale
    bordered = replace(scale, border=corner)
    rest = assess_scale(bordered, sample)
    is_head = rest.soft >= LEAST_SOFT and rest.impossible <= MOST_IMPOSSIBLE
    return bordered if is_head else scale


def _blacken_corners(values_hu: Numbers, stored: Stored) -> None:
    """Set areas to air, in place, that reach a corner of a head's slice and have a single number as
    bright as bone: single slices or corners may have a marker of pixels that were not scanned.
    """
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        if values_hu[row, column] > BRIGHTEST_CORNER_HU:
            alike = (stored == stored[row, column]).astype(np.uint8)
            _, labels = cv2.connectedComponents(alike, connectivity=4)
            area = labels == labels[row, column]
            rest = values_hu[~area]
            if (
                area.mean() >= LEAST_CORNER
                and soft_tissue_share(rest) >= LEAST_SOFT
                and (rest > HIGHEST_HU).sum() <= MOST_IMPOSSIBLE * rest.size
            ):
                values_hu[area] = AIR_HU


def _with_rising_slope(
    stored: Sequence[Stored], paddings: Sequence[Mask | None], claim: Claim, sample: Numbers
) -> tuple[Scale, list[str]] | None:
    """Return the scale of a claim with a negative slope without its sign, and notes, if the numbers
    are those of a head then; else None.
    """
    try:
        scale, notes = scale_of(stored, paddings, replace(claim, slope=-(claim.slope or -1.0)))
    except ImageError:
        return None
    if not assess_scale(scale, sample).is_head:
        return None
    return scale, [
        *notes,
        f"The {claim.container}'s rescale slope is negative, but its larger numbers are denser"
        " tissue, so its sign was ignored.",
    ]


def _sample_of(stored: Sequence[Stored], paddings: Sequence[Mask | None]) -> Numbers:
    """Return a sample of the numbers of a scan, without padding and non-finite values."""
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
    """Return the number that fills at least three corners in half of the slices, or None."""
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
    """Return whether in most slices the edge, which shows air, is brighter than the slice as a
    whole.
    """
    bright = [
        np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]))
        > pixels.mean()
        for pixels in stored
    ]
    return 2 * sum(map(bool, bright)) > len(bright)


def _soft_share(values_hu: NDArray[np.floating]) -> float:
    if not values_hu.size:
        return 0.0
    return float(((values_hu >= SOFT_HU[0]) & (values_hu <= SOFT_HU[1])).mean())
