"""Scans as the rows of a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

FIELDS_OF_CSV = (
    "id",
    "study_id",
    "title",
    "status",
    "state",
    "verdict",
    "probability",
    "threshold",
    "stat",
    "kind",
    "slice_count",
    "created_at",
    "finished_at",
    "model_version",
    "architecture",
    "warnings",
    "notes",
    "error",
    "confirmed",
    "opinions",
)


def as_csv(scans: list[dict[str, Any]]) -> str:
    """Return scans with their opinions (`webapp.api.opinions.add_opinions`) as a table: one row for
    each scan, without its slices.
    """
    file = io.StringIO()
    table = csv.DictWriter(file, FIELDS_OF_CSV, extrasaction="ignore")
    table.writeheader()
    for scan in scans:
        result = scan["result"] or {}
        version = result.get("model_version", {})
        row = {
            **result,
            **scan,
            "model_version": version.get("id"),
            "architecture": version.get("architecture"),
            "warnings": " ".join(result.get("warnings", [])),
            "notes": " ".join(scan["notes"]),
            "opinions": "; ".join(map(_opinion_text, scan["opinions"])),
        }
        table.writerow({name: _inert(row.get(name)) for name in FIELDS_OF_CSV})
    return file.getvalue()


def _opinion_text(opinion: Mapping[str, Any]) -> str:
    """Return an opinion as text, such as "ann on slice 3: present (subdural), “thin”"."""
    where = "" if opinion["slice"] is None else f" on slice {opinion['slice'] + 1}"
    types = f" ({', '.join(opinion['types'])})" if opinion["types"] else ""
    comment = f", “{' '.join(opinion['comment'].split())}”" if opinion["comment"] else ""
    return f"{opinion['author']}{where}: {opinion['finding']}{types}{comment}"


def _inert(value: Any) -> Any:
    """Return a cell that no spreadsheet interprets as a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
