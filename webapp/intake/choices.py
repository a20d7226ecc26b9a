"""The options of an upload."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from webapp.intake.series import Pictures, Studies


@dataclass(frozen=True)
class Choices:
    """The options of an upload.

    Attributes:
        stat: its scans are analyzed first, up to the user's limit on STAT scans.
        pictures: which of its images are the slices of one scan.
        studies: which of its series form a study.
        keep_names: file names may be stored, in titles and messages; otherwise they are discarded.
        leave_out: files without slices are left out instead of refused, even outside archives.
        uncut: a film sheet is read as one slice, and not cut into its slices.
        reports_each_file: the sender gets a response for each file, so damaged ones are left out,
            however many there are.
        dicom_results: DICOM objects are made from the results of DICOM scans automatically, and
            stored with the scans.
        number: the position of this upload among those of one drop, from 1; 0 for a single upload.
        dropped_at: the time of the drop; None for now.
    """

    stat: bool = False
    pictures: Pictures = Pictures.BY_FOLDER
    studies: Studies = Studies.AS_SENT
    keep_names: bool = False
    leave_out: bool = False
    uncut: bool = False
    reports_each_file: bool = False
    dicom_results: bool = False
    number: int = 0
    dropped_at: datetime | None = None


NOTHING_CHOSEN = Choices()
