"""Files that people send: phantoms, and what is no CT at all."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import get_args

import pydicom
from PIL import Image

from ml.scans.phantoms import Kind, phantom, write_dicom, write_png


def phantom_png(folder: Path, seed: int, hemorrhage: bool, size: int = 256) -> Path:
    """Write a phantom as PNG and return its path."""
    path = folder / f"phantom-{seed}-{int(hemorrhage)}.png"
    write_png(phantom(seed, hemorrhage, size=size), path)
    return path


def phantom_dicom(folder: Path, seed: int, hemorrhage: bool, size: int = 256) -> Path:
    """Write a phantom as DICOM and return its path."""
    path = folder / f"phantom-{seed}-{int(hemorrhage)}.dcm"
    write_dicom(phantom(seed, hemorrhage, size=size), path, series=path.name)
    return path


def phantom_series(
    folder: Path, seed: int, bleeds: Collection[int], slices: int, size: int = 128
) -> Path:
    """Write a ZIP of DICOM slices from foot to head, of which those in `bleeds` show hemorrhage, in
    no order; return its path.
    """
    archive = folder / f"series-{seed}.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for index in sorted(range(slices), key=lambda index: index * 7 % slices):
            path = folder / f"{index}.dcm"
            hu = phantom(seed, index in bleeds, size=size)
            write_dicom(
                hu, path, series=archive.name, number=slices - index, position_mm=5.0 * index
            )
            packed.write(path, path.name)
    return archive


def bad_files(folder: Path) -> dict[str, bytes]:
    """Return what people send by mistake or from malice, by a name for it."""
    good = phantom_png(folder, 1, hemorrhage=True).read_bytes()
    dicom = pydicom.dcmread(phantom_dicom(folder, 1, hemorrhage=True))
    del dicom.PixelData
    dicom.save_as(folder / "no-pixels.dcm")
    return {
        "empty.png": b"",
        "text.png": b"Dear radiologist, please find attached nothing at all.\n" * 20,
        "truncated.png": good[: len(good) // 2],
        "huge.png": png_that_claims(30_000, 30_000),
        "no-pixels.dcm": (folder / "no-pixels.dcm").read_bytes(),
    }


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few hundred bytes whose header announces far more pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def phantom_dataset(folder: Path, patients: int = 16, size: int = 192, slices: int = 2) -> Path:
    """Write a ZIP of phantoms, two slices a patient unless told otherwise, half of the patients
    with hemorrhage; return its path.
    """
    kinds = get_args(Kind)
    rows = ["filename,label,patient"]
    archive = folder / "phantoms.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for patient in range(patients):
            label = patient % 2
            for slice_index in range(slices):
                seed = 100 + 2 * patient + slice_index
                path = folder / f"{seed}.png"
                write_png(
                    phantom(
                        seed, bool(label), kinds[(patient // 2 + slice_index) % len(kinds)], size
                    ),
                    path,
                )
                # Heads without blood are so alike that they would count as near-duplicates, one
                # group: patients lie askew here.
                Image.open(path).rotate(360 * patient / patients, Image.Resampling.BILINEAR).save(
                    path
                )
                packed.write(path, f"images/{path.name}")
                rows.append(f"images/{path.name},{label},P{patient}")
        packed.writestr("labels.csv", "\n".join(rows) + "\n")
    return archive
