"""Uploads: judged by their content, copied without names, and queued as rows."""

from webapp.intake.accept import PACKED, Choices, accept_dataset, accept_scans, within_rate
from webapp.intake.clean_copy import UploadRejected

__all__ = ["PACKED", "Choices", "UploadRejected", "accept_dataset", "accept_scans", "within_rate"]
