"""Uploads: identified by their content, de-identified, and queued as rows."""

from webapp.intake.accept import Receipt, accept_upload, require_room, within_rate
from webapp.intake.choices import Choices
from webapp.intake.clean_copy import QuotaReached, UploadRejected
from webapp.intake.dataset_upload import accept_dataset
from webapp.intake.originals import PACKED
from webapp.intake.rearrange import NotRearranged, join_pictures, split_series
from webapp.intake.series import COUNTING_PEOPLE, Pictures, Studies
from webapp.intake.sorting import NothingTaken
from webapp.intake.uids import NewUids

__all__ = [
    "COUNTING_PEOPLE",
    "PACKED",
    "Choices",
    "NewUids",
    "NotRearranged",
    "NothingTaken",
    "Pictures",
    "QuotaReached",
    "Receipt",
    "Studies",
    "UploadRejected",
    "accept_dataset",
    "accept_upload",
    "join_pictures",
    "require_room",
    "split_series",
    "within_rate",
]
