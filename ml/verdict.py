"""The state of a verdict, as the pages, the API and the command line report it.

`ml.inference.predictor` compares a probability with the inconclusive band of the model's card;
`ml.evaluation.calibration` fits that band.

Standard library only, because the web application imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

State = Literal["suspected", "inconclusive", "not found"]
STATES: tuple[State, ...] = ("suspected", "inconclusive", "not found")
NARROWEST_BAND = 1e-6
"""A narrower inconclusive band is empty: only rounding separates its ends."""


def state_of(*, positive: bool, uncertain: bool) -> State:
    """Return the state of a verdict: inconclusive inside the inconclusive band, where neither a
    positive nor a negative verdict reaches its promised predictive value.
    """
    if uncertain:
        return "inconclusive"
    return "suspected" if positive else "not found"


def inconclusive_band(
    card: Mapping[str, Any], threshold: float, *, of_series: bool
) -> tuple[float, float] | None:
    """Return the band of probabilities (low, high) within which a verdict is inconclusive; None if
    the card does not contain it or if it is empty.

    Args:
        card: a model's card as JSON (`ml.artifacts.card.Card`); the fields whose names begin with
            "uncertain_", "scan_uncertain_" and "scan_threshold" are used.
        of_series: whether the verdict is on a scan of several slices.
    """
    # A card without a threshold for scans (then -1) has one band for both.
    prefix = "scan_" if of_series and card.get("scan_threshold", -1.0) >= 0 else ""
    low, high = card.get(f"{prefix}uncertain_low"), card.get(f"{prefix}uncertain_high")
    if low is None or high is None:
        return None
    low, high = widened((low, high), threshold)
    return (low, high) if high - low >= NARROWEST_BAND else None


def widened(band: tuple[float, float], threshold: float) -> tuple[float, float]:
    """Return the band, widened to include a threshold that may have been chosen outside it."""
    low, high = band
    return min(low, threshold), max(high, threshold)
