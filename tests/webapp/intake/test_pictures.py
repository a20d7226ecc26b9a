"""PNG and JPEG files: their size, and copies that show the same and say nothing else."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from tests.webapp.intake.made import Watched, chunk, picture
from webapp.intake.pictures import AnimatedPicture, copy_jpeg, copy_png
from webapp.intake.streams import BLOCK, MAX_PARTS, Budget, DamagedFile, TooMuchWork

SECRETS = [f"PLANT{number:03}X".encode() for number in range(20)]


def slice_of(mode: str = "L") -> Image.Image:
    """Return a picture of 40 x 70 in which no two rows or columns are alike."""
    values = np.add.outer(np.arange(70) * 3, np.arange(40)).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def as_file(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def copied(content: bytes) -> bytes:
    """Return the clean copy of a picture."""
    copy = io.BytesIO()
    (copy_png if content.startswith(b"\x89PNG") else copy_jpeg)(io.BytesIO(content), copy)
    return copy.getvalue()


def shown(content: bytes) -> np.ndarray:
    """Return what a viewer shows of a picture."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_copied_png_shows_the_same(mode: str) -> None:
    content = as_file(slice_of() if mode == "L" else Image.new(mode, (40, 70)), "PNG")
    assert copy_png(io.BytesIO(content), io.BytesIO()) == (40, 70)
    assert Image.open(io.BytesIO(copied(content))).mode == Image.open(io.BytesIO(content)).mode
    assert (shown(copied(content)) == shown(content)).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"quality": 100, "optimize": True}],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_copied_jpeg_shows_the_same(mode: str, options: dict[str, object]) -> None:
    content = as_file(slice_of(mode), "JPEG", **options)
    assert copy_jpeg(io.BytesIO(content), io.BytesIO()) == (40, 70)
    assert (shown(copied(content)) == shown(content)).all()


def test_a_jpeg_of_many_blocks_is_copied_wherever_its_markers_fall() -> None:
    noise = Image.effect_noise((1200, 900), 90)
    content = as_file(noise, "JPEG", quality=95, restart_marker_blocks=7)
    assert len(content) > 5 * BLOCK
    assert copied(content) == as_file(noise, "JPEG", quality=95, restart_marker_blocks=7)


def test_whatever_a_png_can_say_besides_its_pixels_stays_behind() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", SECRETS[0].decode())
    texts.add_text("Author", SECRETS[1].decode(), zip=False)
    texts.add_itxt("Title", SECRETS[2].decode())
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = SECRETS[3].decode(), SECRETS[4].decode()
    content = as_file(slice_of(), "PNG", pnginfo=texts, exif=exif, icc_profile=SECRETS[5])
    content = content.replace(b"IEND", b"IEND", 1)
    private = chunk(b"prVt", SECRETS[6])
    at = content.index(b"IDAT") - 4
    content = content[:at] + private + content[at:] + SECRETS[7]
    assert copied(content).count(b"PLANT") == 0
    assert (shown(copied(content)) == shown(content)).all()


def test_whatever_a_jpeg_can_say_besides_its_pixels_stays_behind() -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x0112] = SECRETS[0].decode(), SECRETS[1].decode(), 6
    content = as_file(
        slice_of(), "JPEG", exif=exif, comment=SECRETS[2], icc_profile=SECRETS[3], xmp=SECRETS[4]
    )
    app13 = b"\xff\xed" + struct.pack(">H", 2 + len(SECRETS[5])) + SECRETS[5]
    content = content[:2] + app13 + content[2:] + SECRETS[6]
    assert copied(content).count(b"PLANT") == 0
    assert (shown(copied(content)) == shown(content)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_copy_is_turned_as_the_original_was(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = as_file(slice_of(), kind, exif=exif)
    assert (shown(copied(content)) == shown(content)).all()


def test_fill_bytes_before_a_jpegs_marker_are_skipped() -> None:
    content = as_file(slice_of(), "JPEG")
    assert copied(content[:2] + b"\xff\xff\xff" + content[2:]) == content


def test_every_flipped_byte_of_a_png_is_noticed() -> None:
    content = as_file(Image.linear_gradient("L").resize((8, 8)), "PNG")
    for at in range(8, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        with pytest.raises(DamagedFile):
            copy_png(io.BytesIO(damaged), io.BytesIO())


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [chunk(b"IDAT", b"x"), chunk(b"IEND", b"")],
        [chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)), chunk(b"IEND", b"")],
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 0, 0, 0, 0)),
            chunk(b"IDAT", b"x"),
            chunk(b"IEND", b""),
        ],
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)),
            *[chunk(b"IDAT", b"")] * MAX_PARTS,
            chunk(b"IEND", b""),
        ],
    ],
    ids=["nothing", "no header", "no pixels", "no width", "too many chunks"],
)
def test_a_png_of_odd_chunks_is_damaged(chunks: list[bytes]) -> None:
    with pytest.raises(DamagedFile):
        copy_png(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)), io.BytesIO())


@pytest.mark.parametrize(("name", "most"), [(b"PLTE", 768), (b"tRNS", 256)])
def test_a_chunk_that_is_larger_than_it_can_be_is_damage(name: bytes, most: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    for length, fits in ((most, True), (most + 3, False)):
        content = (
            b"\x89PNG\r\n\x1a\n"
            + header
            + chunk(name, bytes(length))
            + chunk(b"IDAT", b"x")
            + chunk(b"IEND", b"")
        )
        if fits:
            assert copy_png(io.BytesIO(content), io.BytesIO()) == (4, 4)
        else:
            with pytest.raises(DamagedFile):
                copy_png(io.BytesIO(content), io.BytesIO())


def test_an_animated_png_is_refused() -> None:
    content = as_file(slice_of(), "PNG", save_all=True, append_images=[slice_of().rotate(90)])
    with pytest.raises(AnimatedPicture):
        copy_png(io.BytesIO(content), io.BytesIO())


def test_a_large_chunk_is_read_in_small_pieces() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    file = Watched(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", bytes(5_000_000)) + chunk(b"IEND", b"")
    )
    assert copy_png(file, io.BytesIO()) == (4, 4)
    assert file.largest <= BLOCK


def test_every_cut_of_a_jpeg_is_noticed() -> None:
    content = as_file(slice_of(), "JPEG")
    for end in range(2, len(content)):
        with pytest.raises(DamagedFile):
            copy_jpeg(io.BytesIO(content[:end]), io.BytesIO())


def test_a_jpeg_of_empty_segments_is_damage_and_takes_no_time() -> None:
    whole = picture("JPEG")
    content = whole[:2] + b"\xff\xe1\0\2" * 49_000 + whole[2:]
    with pytest.raises(DamagedFile):
        copy_jpeg(io.BytesIO(content), io.BytesIO())


def test_the_segments_of_all_files_of_an_upload_are_counted_together() -> None:
    whole = picture("JPEG")
    content = whole[:2] + b"\xff\xe1\0\2" * 1_900 + whole[2:]
    budget = Budget(size=100_000)
    read = 0
    with pytest.raises(TooMuchWork):
        for _ in range(1_000):
            budget.begin_file()
            copy_jpeg(io.BytesIO(content), io.BytesIO(), budget)
            read += 1
    assert 50 < read < 80


def test_an_upload_has_a_time() -> None:
    budget = Budget()
    budget._until = 0.0
    with pytest.raises(TooMuchWork):
        budget.begin_file()
