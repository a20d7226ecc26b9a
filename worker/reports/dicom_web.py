"""What DICOMweb serves for a DICOM object besides its file. It is created along with the object,
because web processes have neither pydicom nor Pillow.
"""

from __future__ import annotations

import json
from io import BytesIO

import pydicom
from PIL import Image

JPEG_QUALITY = 92


def as_json(file: bytes) -> bytes:
    """Return a DICOM object in the DICOM JSON model (PS3.18 F), without its pixels."""
    dataset = pydicom.dcmread(BytesIO(file), stop_before_pixels=True)
    content = dataset.to_json_dict()
    syntax = {"vr": "UI", "Value": [str(dataset.file_meta.TransferSyntaxUID)]}
    content["00083002"] = syntax  # Available Transfer Syntax UID.
    return json.dumps(content, separators=(",", ":")).encode()


def places_of(file: bytes) -> dict[str, str]:
    """Return the UIDs of study and series of a DICOM object, for the report's row."""
    header = pydicom.dcmread(BytesIO(file), specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
    return {
        "study_uid": str(header.StudyInstanceUID),
        "series_uid": str(header.SeriesInstanceUID),
    }


def rendered(file: bytes) -> list[bytes]:
    """Return the image of a secondary capture, RGB, as JPEG and as PNG."""
    capture = pydicom.dcmread(BytesIO(file))
    picture = Image.frombytes("RGB", (capture.Columns, capture.Rows), capture.PixelData)
    files = []
    for kind, options in (("JPEG", {"quality": JPEG_QUALITY}), ("PNG", {})):
        content = BytesIO()
        picture.save(content, kind, **options)
        files.append(content.getvalue())
    return files
