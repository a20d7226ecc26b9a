"""What the viewer of a series starts with: where it opens, through which window, and its strip of
probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from webapp.charts.bars import Bar, probability_bars
from webapp.models import Prediction
from webapp.scans.stored_volume import AS_SUBMITTED, WINDOWS, Volume


@dataclass(frozen=True)
class Preset:
    """A window preset; `is_chosen` marks the one that the viewer opens with."""

    name: str
    level: float
    width: float
    is_chosen: bool


MARK_MARGIN = 0.1  # of a slice


@dataclass(frozen=True)
class SliceView:
    """One slice: its index counts from 0, its number as displayed from 1.

    `probability` is None if the model gave no probability for each slice.
    """

    index: int
    number: int
    probability: float | None

    @property
    def mark_x(self) -> float:
        """Where the slice's mark begins on a strip that is one unit wide for each slice of the
        series.
        """
        return self.index + MARK_MARGIN


@dataclass(frozen=True)
class SeriesView:
    """A series as its page shows it before any script runs.

    Attributes:
        columns, rows: pixels of a slice.
        mm: the distances of neighboring voxels, to the right, to the front and to the head.
        measured: which of these distances are not assumed (`webapp.scans.stored_volume.Volume`).
        probabilities: one for each slice, or empty.
        bars: the same as bars of the strip, with `first_slices` highlighted.
        start: the slice that is shown first.
        window: the query for a slice in the first preset; empty without HU.
    """

    columns: int
    rows: int
    mm: tuple[float, float, float]
    measured: frozenset[str]
    is_hu: bool
    slice_count: int
    probabilities: Sequence[float]
    bars: tuple[Bar, ...]
    first_slices: tuple[SliceView, ...]
    start: SliceView
    presets: tuple[Preset, ...]
    window: dict[str, str]

    @property
    def has_pixel_size(self) -> bool:
        """Whether distances within a slice are known."""
        return "pixels" in self.measured

    @property
    def has_planes(self) -> bool:
        """Whether the slices are evenly spaced at known distances, so that other planes are in
        proportion.
        """
        return self.slice_count > 1 and {"pixels", "slices"} <= self.measured

    @property
    def facts(self) -> dict[str, Any]:
        """The values that viewer.js needs."""
        return {
            "columns": self.columns,
            "rows": self.rows,
            "slices": self.slice_count,
            "mm": self.mm,
            "isHu": self.is_hu,
            "probabilities": self.probabilities if self.slice_count > 1 else [],
        }


def series_view(volume: Volume, prediction: Prediction) -> SeriesView:
    """Return the view of a stored series with its prediction: it opens at the first slice to look
    at, otherwise in the middle.
    """
    count = len(volume.starts)
    probabilities = prediction.slices if len(prediction.slices) == count else []

    def view_of(index: int) -> SliceView:
        return SliceView(index, index + 1, probabilities[index] if probabilities else None)

    # If fewer slices are stored than were submitted, some may be missing.
    first = [index for index in prediction.first_slices or [] if index < count]
    windows = WINDOWS if volume.is_hu else {"as submitted": AS_SUBMITTED}
    return SeriesView(
        columns=volume.columns,
        rows=volume.rows,
        mm=(volume.column_mm, volume.row_mm, volume.slice_mm),
        measured=volume.measured,
        is_hu=volume.is_hu,
        slice_count=count,
        probabilities=probabilities,
        bars=probability_bars(probabilities, first),
        first_slices=tuple(view_of(index) for index in first),
        start=view_of(first[0] if first else (count - 1) // 2),
        presets=tuple(
            Preset(name.capitalize(), window.level, window.width, place == 0)
            for place, (name, window) in enumerate(windows.items())
        ),
        window={"window": "brain"} if volume.is_hu else {},
    )
