"""The columns by which every table of answers identifies the image or scan of an answer."""

from __future__ import annotations

from typing import Any

from ml.datasets.examples import Example


def whose_answer(example: Example, level: str, group: str) -> dict[str, Any]:
    """Return the columns of `ml.evaluation.answers` that identify an image or scan.

    Args:
        example: the image, or the first one of the scan.
        level: "slice" or "patient". A patient's row names no file and no slice.
        group: images with the same group are never on both sides of a split.
    """
    whole = level == "patient" and example.patient
    return {
        "level": level,
        "dataset": example.dataset,
        "filename": "" if whole else example.name,
        "patient": example.scan_name,
        "slice": "" if whole or example.slice is None else example.slice,
        "group": group,
        "image": mark_of(example),
    }


def mark_of(example: Example) -> str:
    """Return an identifier of an image without its name: the first 16 hex digits of its SHA-256."""
    return example.sha256[:16]
