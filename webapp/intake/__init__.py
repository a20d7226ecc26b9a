"""Uploads: identified by their content, de-identified, and queued as rows."""

from webapp.intake.accept import PACKED, Choices, accept_dataset, accept_scans, within_rate
from webapp.intake.clean_copy import UploadRejected

__all__ = ["PACKED", "Choices", "UploadRejected", "accept_dataset", "accept_scans", "within_rate"]
