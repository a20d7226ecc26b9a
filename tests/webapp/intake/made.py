"""Files to send: pictures, DICOM and NIfTI, sound and odd, and some with names planted wherever one
fits.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

SERIES = "1.2.826.0.1.3680043.10.511.3.1"


class Watched(io.BytesIO):
    """A file that notes the largest piece that was asked of it."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.largest = max(self.largest, len(content))
        return content


def picture(kind: str = "PNG", side: int = 64, **options: Any) -> bytes:
    """Return a gray picture as a file."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG's chunk."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def jpeg_of(width: int, height: int) -> bytes:
    """Return a small JPEG that says it is large."""
    small = picture("JPEG")
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", height, width) + small[at + 4 :]


def dicom_file(
    syntax: str = ExplicitVRLittleEndian,
    without: tuple[str, ...] = (),
    undefined: tuple[str, ...] = (),
    preamble: bytes = bytes(128),
    **tags: Any,
) -> bytes:
    """Return a CT slice of 64 x 64 as a DICOM file, with these tags changed, those left out, and
    some sequences of undefined length.
    """
    data = Dataset()
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID = SERIES
    data.Modality = "CT"
    data.PatientName = "Doe^John"
    data.Rows = data.Columns = 64
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.add_new(
        "PixelData",
        "OW",
        np.arange(64 * 64, dtype=">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes(),
    )
    for name, value in tags.items():
        setattr(data, name, value)
    for name in without:
        delattr(data, name)
    for name in undefined:
        data[name].is_undefined_length = True
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.preamble = preamble
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def planted_everywhere(
    syntax: str = ExplicitVRLittleEndian, *, undefined: bool = False
) -> tuple[bytes, list[bytes]]:
    """Return a CT slice that holds a secret wherever a DICOM file can hold one, and the secrets.

    One function, because it is a list of places.
    """
    secrets: list[bytes] = []

    def secret() -> str:
        secrets.append(f"PLANT{len(secrets):03}X".encode())
        return secrets[-1].decode()

    texts = [
        "PatientName", "PatientID", "OtherPatientNames", "PatientAddress", "PatientComments",
        "PatientBirthName",
        "PatientMotherBirthName", "InstitutionName", "InstitutionAddress",
        "InstitutionalDepartmentName", "StationName",
        "ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName",
        "NameOfPhysiciansReadingStudy",
        "StudyDescription", "SeriesDescription", "ProtocolName", "AccessionNumber", "StudyID",
        "ImageComments",
        "AdditionalPatientHistory", "EthnicGroup", "Occupation", "MilitaryRank",
        "PatientTelephoneNumbers",
        "RequestedProcedureDescription", "RequestingPhysician", "DeviceSerialNumber",
        "Manufacturer", "ManufacturerModelName",
        "SoftwareVersions", "DerivationDescription", "DetectorID", "FilterType", "TextComments",
        "DeidentificationMethod",
        "ConvolutionKernel", "RescaleType", "FrameComments", "IssuerOfPatientID", "MedicalAlerts",
        "Allergies", "SpecialNeeds",
    ]  # fmt: skip
    tags: dict[str, Any] = {name: secret() for name in texts}
    for name in (
        "BodyPartExamined",
        "PatientPosition",
        "BurnedInAnnotation",
        "LossyImageCompression",
        "ScheduledStationAETitle",
    ):
        tags[name] = secret()
    tags["ImageType"] = ["ORIGINAL", "PRIMARY", "AXIAL", secret()]
    inner, middle = Dataset(), Dataset()
    inner.PatientName, inner.RetrieveAETitle = secret(), secret()
    inner.add_new((0x0029, 0x1010), "LT", secret())
    middle.CodeMeaning = secret()
    middle.ReferencedSOPSequence = [inner]
    middle.is_undefined_length_sequence_item = undefined
    tags["RequestAttributesSequence"] = [middle, middle]
    tags["ReferencedStudySequence"] = [middle]
    content, frame, value = Dataset(), Dataset(), Dataset()
    content.FrameComments = content.StackID = secret()
    value.RescaleType = value.LUTExplanation = secret()
    frame.FrameContentSequence, frame.PixelValueTransformationSequence = [content], [value]
    tags["PerFrameFunctionalGroupsSequence"] = [frame]
    data = dicom_file(
        syntax,
        undefined=("RequestAttributesSequence",) if undefined else (),
        preamble=secret().encode().ljust(128, b"\0"),
        **tags,
    )
    # What pydicom would not write: private groups, overlays, group 0008 of group lengths' age,
    # names in the file meta, and a tail.
    added = Dataset()
    added.add_new((0x0009, 0x0010), "LO", secret())
    added.add_new((0x0009, 0x1001), "UN", secret().encode().ljust(10, b" "))
    added.add_new((0x6000, 0x0010), "US", 64)
    added.add_new((0x6000, 0x0022), "LO", secret())
    added.add_new((0x6000, 0x3000), "OW", secret().encode().ljust(10, b"\0"))
    added.add_new((0xFFFC, 0xFFFC), "OB", secret().encode().ljust(10, b"\0"))
    return _with_elements(data, added, syntax, source=secret(), tail=secret()), secrets


def _with_elements(content: bytes, added: Dataset, syntax: str, *, source: str, tail: str) -> bytes:
    """Return a DICOM file with further elements, a sender named in its meta, and a text behind its
    end.
    """
    data = pydicom.dcmread(io.BytesIO(content))
    for element in added:
        data.add(element)
    data.file_meta.SourceApplicationEntityTitle = source
    data.file_meta.add_new((0x0002, 0x0100), "UI", "1.2.3.4")
    data.file_meta.add_new((0x0002, 0x0102), "OB", source.encode().ljust(10, b"\0"))
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue() + tail.encode()


def nifti_file(
    shape: tuple[int, ...] = (64, 64, 5),
    version: int = 1,
    *,
    order: str = "<",
    packed: bool = False,
    secrets: bool = False,
) -> bytes:
    """Return a volume of int16, whose header names a patient wherever it can if `secrets`."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    header = (nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header)(endianness=order)
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) % 3000 - 1000
    image = kind(values.astype(np.int16), np.diag([0.5, 0.5, 5, 1]), header)
    image.set_data_dtype(np.int16)
    if secrets:
        for number, name in enumerate(
            (
                "descrip",
                "aux_file",
                "intent_name",
                *(("db_name", "data_type") if version == 1 else ()),
            )
        ):
            image.header[name] = f"PLANT{number:03}X"[: image.header[name].dtype.itemsize]
        image.header.extensions.append(
            nibabel.nifti1.Nifti1Extension("comment", b"PLANT900X Doe^John")
        )
    content = image.to_bytes()
    if secrets:
        content += b"PLANT901X"
    if not packed:
        return content
    file = io.BytesIO()
    with gzip.GzipFile("PLANT902X" if secrets else "", "wb", fileobj=file, mtime=0) as target:
        target.write(content)
    return file.getvalue()


def zip_of(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return an archive of these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()
