"""The results of the gate: the share refused, by family and overall, with intervals."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml.evaluation.metrics import wilson

HEADS = "head"


@dataclass(frozen=True)
class Measured:
    """The score of one held-out image."""

    source: str
    family: str
    score: float


def intervals(measured: Sequence[Measured], refused_from: float) -> list[dict[str, object]]:
    """Return family, n, refused, share, low, high: for every family, then for all head CT and all
    other images.
    """
    groups: dict[str, list[float]] = {}
    for image in measured:
        is_head = image.family.startswith(HEADS)
        groups.setdefault(
            f"{image.family}: {image.source}" if is_head else image.family, []
        ).append(image.score)
    groups["all head CT"] = [image.score for image in measured if image.family == "head CT"]
    groups["all odd pictures"] = [
        image.score for image in measured if not image.family.startswith(HEADS)
    ]
    rows: list[dict[str, object]] = []
    for family, scores in groups.items():
        if not scores:
            continue
        refused = int(np.sum(np.array(scores) >= refused_from))
        low, high = wilson(refused, len(scores))
        shares = {"share": refused / len(scores), "low": low, "high": high}
        rows.append(
            {"family": family, "n": len(scores), "refused": refused}
            | {name: round(value, 4) for name, value in shares.items()}
        )
    return rows


def write_results(
    measured: Sequence[Measured], refused_from: float, path: Path | None
) -> list[str]:
    """Write the results as CSV if there is a path; return them as lines."""
    rows = intervals(measured, refused_from)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    return [
        f"{row['family']}: {row['refused']} of {row['n']} refused, {row['share']} ({row['low']} to"
        f" {row['high']})"
        for row in rows
    ]
