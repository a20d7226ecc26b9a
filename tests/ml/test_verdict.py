"""The inconclusive band of a card at a threshold."""

from __future__ import annotations

from typing import Any

import pytest

from ml.verdict import inconclusive_band

CARD = {"uncertain_low": 0.3, "uncertain_high": 0.6}
OF_SCANS = {"scan_threshold": 0.5, "scan_uncertain_low": 0.4, "scan_uncertain_high": 0.7}
EMPTY = {"uncertain_low": 0.5, "uncertain_high": 0.5}
ABSENT = dict.fromkeys(OF_SCANS, -1.0)


@pytest.mark.parametrize(
    ("card", "threshold", "of_series", "band"),
    [
        (CARD | OF_SCANS, 0.5, False, (0.3, 0.6)),
        (CARD | OF_SCANS, 0.5, True, (0.4, 0.7)),
        (CARD | ABSENT, 0.5, True, (0.3, 0.6)),
        (CARD, 0.9, True, (0.3, 0.9)),
        (CARD, 0.1, False, (0.1, 0.6)),
        ({}, 0.5, False, None),
        (EMPTY, 0.5, False, None),
        (EMPTY, 0.5 + 1e-9, False, None),
        (EMPTY, 0.3, False, (0.3, 0.5)),
    ],
)
def test_the_band_is_that_of_the_kind_of_scan_and_holds_the_threshold(
    card: dict[str, Any], threshold: float, of_series: bool, band: tuple[float, float] | None
) -> None:
    assert inconclusive_band(card, threshold, of_series=of_series) == band
