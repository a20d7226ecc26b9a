"""Content of a report, made by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from PIL import Image

from worker.reports.content import Content, Verdict

AT = datetime(2026, 11, 29, 14, 5, tzinfo=UTC)
POSITIVE = Verdict("suspected", "Brain Hemorrhage Detected.", 0.873, 0.512, (0.374, 0.512))


def content(**other: Any) -> Content:
    """Return the content of a report of a series of four slices, of which some is another."""
    values: dict[str, Any] = {
        "scan_id": "3f" * 16,
        "title": "Phantom",
        "file_type": "dicom",
        "submitted_at": AT,
        "finished_at": AT,
        "verdict": POSITIVE,
        "slices": [0.1, 0.2, 0.873, 0.4],
        "first_slices": [2, 3],
        "types": [("subarachnoid", 0.61)],
        "architecture": "googlenet_cells_series",
        "model": "GoogLeNet cells for series · v3",
        "model_card": "db3650e237e8",
        "model_version": "ab" * 16,
        "warnings": [],
        "notes": [],
        "image": Image.linear_gradient("L"),
        "index": 2,
        "overlay": Image.new("RGBA", (256, 256), (250, 150, 20, 120)),
    }
    return Content(**{**values, **other})
