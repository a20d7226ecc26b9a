"""Objects of a result as parts of the study that a scan came from: with its UIDs, and with the
patient and study attributes from its headers.
"""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from webapp.models.reports import uid_of
from webapp.routing import Link
from worker.reports.sources import EMPTY_WHERE_ABSENT

REPLACES = ", replaces earlier one"
OF_A_COPY = (
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
"""Attributes that mark an object as de-identified."""


def stable_uid(*parts: str) -> UID:
    """Return a UID that is the same for the same texts, so that an object that is generated and
    sent again is the same object.
    """
    return UID(uid_of(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]))


def in_original_study(content: bytes, link: Link, *, replaces: bool = False) -> Dataset:
    """Convert an object (`worker.reports.dicom_objects`), a file, to a part of the original study.
    Its series gets a UID derived from its instance UID, and its description says so if it
    `replaces` an object that was sent before, which the archive still has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every odd value, and may quote it.
        dataset = pydicom.dcmread(BytesIO(content))
        dataset.walk(lambda _, element: _as_original(element, link))
        dataset.SeriesInstanceUID = stable_uid(dataset.SOPInstanceUID, "series")
        if replaces:
            dataset.SeriesDescription += REPLACES
        for name in OF_A_COPY:
            if name in dataset:
                del dataset[name]
        for name in EMPTY_WHERE_ABSENT:
            setattr(dataset, name, None)
        original = Dataset.from_json(dict(link.patient))
        for element in original:
            if element.tag != Tag("SpecificCharacterSet"):
                dataset[element.tag] = element
        dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _as_original(element: DataElement, link: Link) -> None:
    """Replace the UIDs of copies by the original ones."""
    if element.VR != "UI" or not element.value:
        return
    if isinstance(element.value, str):
        element.value = link.uids.get(element.value, element.value)
    else:
        element.value = [link.uids.get(uid, uid) for uid in element.value]
