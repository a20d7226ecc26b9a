"""Seed files for the fuzzer: valid files of every accepted kind, and unusual ones."""

from __future__ import annotations

import gzip
import io
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from ml.scans.phantoms import phantom, write_dicom, write_png
from tests.ml.made_scans import nifti, one_file_of, write_series
from tests.webapp.intake.made import dicom_file, nifti_file, picture, planted_everywhere, zip_of
from webapp.config import PROJECT_ROOT
from webapp.intake.dicom import DicomFile

SHARED = PROJECT_ROOT.parent / "shared" / "data"
PYDICOMS_OWN = Path(pydicom.__file__).parent / "data" / "test_files"
LARGEST = 300_000
"""Maximum bytes of pydicom's and the shared files: mutations concern headers, and ten thousand
uploads must finish in time.
"""
SIDE = 128
MODALITY = re.compile(rb"(\x08\0\x60\0(?:CS\x02\0|\x02\0\0\0))[A-Z]{2}")
"""Its element, little-endian with and without the value representation."""


@dataclass(frozen=True)
class Seed:
    """A valid file; `kind` is its row in the tables."""

    kind: str
    content: bytes


def seeds() -> list[Seed]:
    """Return all seeds; the same on every machine, except for those of `../shared`, which may be
    missing.
    """
    with tempfile.TemporaryDirectory(prefix="hemoscan-fuzz-") as folder, warnings.catch_warnings():
        # Some of pydicom's own files are malformed on purpose and cause warnings.
        warnings.simplefilter("ignore")
        return [
            *_pictures(Path(folder)),
            *_dicom(Path(folder)),
            *_nifti(),
            *_archives(Path(folder)),
        ]


def _pictures(folder: Path) -> Iterator[Seed]:
    write_png(phantom(3, hemorrhage=True, size=SIDE), folder / "phantom.png")
    shown = Image.open(folder / "phantom.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(
        (phantom(4, hemorrhage=False, size=SIDE).astype(np.int32) + 1024)
        .clip(0, 4095)
        .astype(np.uint16)
    )
    for kind, image, options in (
        ("PNG", shown, {}),
        ("PNG", shown.convert("RGB"), {"exif": turned}),
        ("PNG", shown.convert("P"), {"transparency": 0}),
        ("PNG", shown.convert("LA"), {}),
        ("PNG", deep, {}),
        ("JPEG", shown, {"quality": 90}),
        ("JPEG", shown.convert("RGB"), {"progressive": True, "exif": turned}),
        ("JPEG", shown.convert("CMYK"), {}),
        ("JPEG", shown, {"restart_marker_blocks": 4, "comment": b"Doe^John"}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield Seed(kind, file.getvalue())
    yield Seed("PNG", picture())
    yield Seed("JPEG", picture("JPEG"))
    for pattern, kind in (
        ("head_ct/**/*.png", "PNG"),
        ("ct_ich/images/*/*.jpg", "JPEG"),
        ("phe_sich/images/**/*.png", "PNG"),
    ):
        yield from (Seed(kind, path.read_bytes()) for path in sorted(SHARED.glob(pattern))[:3])


def _dicom(folder: Path) -> Iterator[Seed]:
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        yield Seed("DICOM", dicom_file(syntax))
        yield Seed("DICOM", planted_everywhere(syntax, undefined=True)[0])
    paths = write_series(folder / "series", 4)
    for functional_groups in (False, True):
        yield Seed(
            "DICOM",
            one_file_of(
                paths, folder / "frames.dcm", functional_groups=functional_groups
            ).read_bytes(),
        )
    write_dicom(phantom(5, hemorrhage=True, size=SIDE), folder / "phantom.dcm")
    yield Seed("DICOM", (folder / "phantom.dcm").read_bytes())
    packed = pydicom.dcmread(folder / "phantom.dcm")
    packed.compress(RLELossless)
    packed.save_as(folder / "rle.dcm")
    yield Seed("DICOM", (folder / "rle.dcm").read_bytes())
    for path in sorted(PYDICOMS_OWN.glob("*.dcm")):
        content = path.read_bytes()
        if len(content) <= LARGEST and content[128:132] == b"DICM":
            header = DicomFile(io.BytesIO(content)).header
            if header.has_pixels and header.samples == 1:
                yield Seed("DICOM", _made_ct(content))
    for path in sorted(SHARED.glob("dicom_samples/single/*.dcm"))[:3]:
        yield Seed("DICOM", path.read_bytes())


def _made_ct(content: bytes) -> bytes:
    """Relabel the file as CT, so that its pixels are decoded: its encoding may be unique."""
    return MODALITY.sub(rb"\1CT", content, count=1)


def _nifti() -> Iterator[Seed]:
    head = np.stack([phantom(6, hemorrhage=False, size=64)] * 3, axis=-1)
    affine = np.diag([3.6, 3.6, 5.0, 1.0])
    for version in (1, 2):
        for order in "<>":
            yield Seed("NIfTI", nifti(head, affine, version=version, order=order))
        yield Seed("NIfTI", nifti_file(version=version, packed=True, secrets=True))
    for kind in ("u1", "u2", "f4", "f8"):
        yield Seed(
            "NIfTI",
            gzip.compress(nifti(head.clip(0, 255).astype(kind), None, slope=1.5, intercept=-20), 1),
        )


def _archives(folder: Path) -> Iterator[Seed]:
    slices = {f"scan/{path.name}": path.read_bytes() for path in write_series(folder / "packed", 6)}
    yield Seed("ZIP", zip_of(slices))
    yield Seed(
        "ZIP",
        zip_of(
            slices
            | {"readme.txt": b"text", "DICOMDIR": b"x", "odd/1.dcm": dicom_file(Modality="MR")}
        ),
    )
    yield Seed(
        "ZIP",
        zip_of({f"{number}.png": picture(side=64 + number) for number in range(4)}, compression=0),
    )
    yield Seed(
        "ZIP",
        zip_of(
            {
                "a/é.jpg": picture("JPEG"),
                "volume.nii.gz": nifti_file(packed=True),
                "b/1.png": picture(),
            }
        ),
    )
