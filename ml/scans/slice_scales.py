"""The scale of each slice of a scan: that of the scan, unless its own tags or values differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ml.scans.hounsfield import (
    FAT_HU,
    SAMPLE_PX,
    Claim,
    Mask,
    Numbers,
    Scale,
    Stored,
    assess_scale,
    scale_from_air,
    scale_of,
)


def scales_of(
    stored: Sequence[Stored], paddings: Sequence[Mask | None], claims: Sequence[Claim]
) -> tuple[list[Scale], list[str]]:
    """Return the scale of each slice of a scan, and notes about assumptions.

    Scanners may write a different slope and intercept for each slice; these are applied before the
    values of all slices are assessed together. A single slice whose values have an offset different
    from that in its tags is corrected individually.

    Args:
        stored: the numbers of each slice, (rows, columns).
        paddings: a mask for each slice of the pixels that the file marks as not scanned, or None.
        claims: the tags of each slice.

    Raises:
        ImageError: the numbers are not HU, or more than one scale fits.
    """
    counts = Counter(claims)
    usual = max(counts, key=lambda claim: (claim.intercept is not None, counts[claim]))
    completed = [_completed(claim, usual) for claim in claims]
    if len({(claim.slope, claim.intercept) for claim in completed}) > 1:
        values = [
            numbers[_every(numbers)].astype(np.float64) * (claim.slope or 1.0)
            + (claim.intercept or 0.0)
            for numbers, claim in zip(stored, completed, strict=True)
        ]
        masks = [None if mask is None else mask[_every(mask)] for mask in paddings]
        plain = replace(usual, slope=1.0, intercept=0.0, bits=16)
        common, notes = scale_of(values, masks, plain)
        if replace(common, border=None) == Scale():
            scales = [_scale_with_border(claim, common.border) for claim in completed]
            return _corrected(stored, scales, completed, notes)
    scale, notes = scale_of(stored, paddings, usual)
    if scale.unit != "hu":
        return [scale] * len(stored), notes
    return _corrected(
        stored, [_scale_for(claim, scale, usual) for claim in claims], completed, notes
    )


def _scale_with_border(claim: Claim, border: float | None) -> Scale:
    """Return the scale given by the tags; `border` is the value to which it maps the number in the
    corners.
    """
    slope, intercept = claim.slope or 1.0, claim.intercept or 0.0
    return Scale(
        slope=slope,
        intercept=intercept,
        border=None if border is None else (border - intercept) / slope,
    )


def _completed(claim: Claim, usual: Claim) -> Claim:
    """Return a slice's tags, with missing ones, and a slope of 0, replaced by those of most
    slices.
    """
    return replace(
        claim,
        slope=claim.slope or usual.slope,
        intercept=usual.intercept if claim.intercept is None else claim.intercept,
    )


def _scale_for(claim: Claim, scale: Scale, usual: Claim) -> Scale:
    """Return the scale of one slice: its own tags override those of the series if the scale of the
    series is that of the `usual` tags.
    """
    is_from_tags = (scale.slope, scale.intercept) == (usual.slope or 1.0, usual.intercept)
    if not is_from_tags:
        return scale
    return replace(
        scale,
        slope=claim.slope or scale.slope,
        intercept=scale.intercept if claim.intercept is None else claim.intercept,
    )


def _corrected(
    stored: Sequence[Stored], scales: list[Scale], claims: Sequence[Claim], notes: list[str]
) -> tuple[list[Scale], list[str]]:
    """Return the scales, replaced for the few slices whose values show no air under their scale but
    would under another.
    """
    corrected: dict[int, Scale] = {}
    for index, (numbers, scale) in enumerate(zip(stored, scales, strict=True)):
        sample = _sample_of(numbers)
        if not sample.size:
            continue
        if scale.slope < 0 and not assess_scale(scale, sample).is_head:
            rising = replace(scale, slope=-scale.slope)
            if assess_scale(rising, sample).is_head:
                corrected[index] = rising
            continue
        if float(scale.values(sample).min()) < FAT_HU:
            continue
        fit = scale_from_air(sample, max(claims[index].bits, 12), scale.slope)
        if fit.scale is not None and assess_scale(fit.scale, sample).is_head:
            corrected[index] = fit.scale
    if not corrected or 2 * len(corrected) >= len(stored):
        return scales, notes
    which = "One slice has" if len(corrected) == 1 else f"{len(corrected)} slices have"
    what = "offset" if all(scales[index].slope > 0 for index in corrected) else "slope or offset"
    notes = [*notes, f"{which} values with another {what} than the others; this was corrected."]
    return [corrected.get(index, scale) for index, scale in enumerate(scales)], notes


def _sample_of(numbers: Stored) -> Numbers:
    sample = numbers[_every(numbers)].astype(np.float64).ravel()
    return sample[np.isfinite(sample)]


def _every(numbers: Stored) -> tuple[slice, slice]:
    """Return the step through rows and columns for a sample."""
    rows, columns = numbers.shape
    return np.s_[:: max(1, rows // SAMPLE_PX), :: max(1, columns // SAMPLE_PX)]
