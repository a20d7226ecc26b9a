"""Uploads: identified by their content, de-identified, and queued as rows."""

from webapp.intake.accept import (
    PACKED,
    Choices,
    Receipt,
    accept_dataset,
    accept_scans,
    accept_upload,
    within_rate,
)
from webapp.intake.clean_copy import UploadRejected
from webapp.intake.rearrange import NotRearranged, join_pictures, split_series
from webapp.intake.series import Pictures, Studies

__all__ = [
    "PACKED",
    "Choices",
    "NotRearranged",
    "Pictures",
    "Receipt",
    "Studies",
    "UploadRejected",
    "accept_dataset",
    "accept_scans",
    "accept_upload",
    "join_pictures",
    "split_series",
    "within_rate",
]
