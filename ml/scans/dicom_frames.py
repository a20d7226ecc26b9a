"""The frames of a DICOM file as if each were a file: functional groups of Enhanced CT (PS3.3
C.7.6.16) become ordinary tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pydicom

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "FrameContentSequence": (
        "TemporalPositionIndex",
        "FrameAcquisitionNumber",
        "InStackPositionNumber",
    ),
    "CTImageFrameTypeSequence": ("FrameType",),
}


def frame_headers(header: pydicom.Dataset, frames: int) -> Iterator[pydicom.Dataset]:
    """Yield the tags of each frame without pixels: the tags of the file, overridden by the frame's
    functional groups.

    A position in the tags of a multi-frame file is that of its first frame, so it is ignored. The
    frames of a concatenation are numbered across all of its files.
    """
    of_file = pydicom.Dataset()
    of_file.update(
        {tag: element for tag, element in header.items() if tag.group not in (0x5200, 0x7FE0)}
    )
    for name in ("ImagePositionPatient", "SliceLocation"):
        if frames > 1 and name in of_file:
            delattr(of_file, name)
    earlier = int(header.get("ConcatenationFrameOffsetNumber") or 0)
    _overlay(of_file, header.get(SHARED) or [])
    per_frame = header.get(PER_FRAME) or []
    for index in range(frames):
        of_frame = pydicom.Dataset()
        of_frame.update(of_file)
        if frames > 1:
            of_frame.InstanceNumber = earlier + index + 1
        _overlay(of_frame, per_frame[index : index + 1])
        yield of_frame


def _overlay(header: pydicom.Dataset, groups: Sequence[pydicom.Dataset]) -> None:
    """Set the tags of the functional groups (a sequence of one item) in `header`."""
    for item in groups[:1]:
        for sequence, names in GROUPS.items():
            for inner in (item.get(sequence) or [])[:1]:
                header.update({inner[name].tag: inner[name] for name in names if name in inner})
