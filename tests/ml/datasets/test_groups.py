"""What belongs together: groups, duplicates, copies that were saved anew, and folds that divide
none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ml.datasets.copy_search import similar_pairs
from ml.datasets.groups import assign_groups, stratified_group_folds
from ml.datasets.near_duplicates import (
    CANDIDATE,
    DUPLICATE_CORRELATION,
    HASH_DIGITS,
    SAME_PICTURE,
    bits_of,
    fingerprint,
    is_telling,
    near_duplicates,
    same_pictures,
)
from ml.datasets.read import read_dataset
from ml.errors import DatasetError
from ml.scans.phantoms import phantom, write_png
from ml.scans.read import read_series
from ml.scans.slices import Slice

PICTURES = 40
EDITS: dict[str, Callable[[Image.Image, Path], None]] = {
    "JPEG of quality 40": lambda picture, path: picture.save(path, "JPEG", quality=40),
    "half as large": (
        lambda picture, path: picture.resize((picture.width // 2, picture.height // 2)).save(
            path, "PNG"
        )
    ),
    "224 pixels": (
        lambda picture, path: picture.resize((224, 224), Image.Resampling.BILINEAR).save(
            path, "PNG"
        )
    ),
    "darker": lambda picture, path: ImageEnhance.Brightness(picture).enhance(0.8).save(path, "PNG"),
    "more contrast": lambda picture, path: (
        ImageEnhance.Contrast(picture).enhance(1.3).save(path, "PNG")
    ),
    "another margin": (
        lambda picture, path: ImageOps.expand(picture, (20, 30, 40, 10)).save(path, "PNG")
    ),
}


def hash_of(path: Path) -> str:
    return fingerprint(read_series([path], may_be_bare=True).slices[0])[0]


def likeness(bits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Tanimoto coefficients of all pairs of hashes, (n, m)."""
    shared = bits @ others.T
    return shared / np.maximum(bits.sum(axis=1)[:, None] + others.sum(axis=1) - shared, 1)


def copies_of(pictures: Sequence[Path], edit: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return of the edited copy of each picture whether it is most like that picture, and how much
    like the one it is most like.
    """
    known = [hash_of(path) for path in pictures]
    copies = []
    for path in pictures:
        EDITS[edit](Image.open(path).convert("L"), folder / "copy")
        copies.append(hash_of(folder / "copy"))
    alike = likeness(bits_of(copies), bits_of(known))
    return alike.argmax(axis=1) == np.arange(len(known)), alike.max(axis=1)


@pytest.mark.parametrize("edit", EDITS)
def test_a_copy_that_was_saved_anew_is_most_like_its_picture(edit: str, tmp_path: Path) -> None:
    for seed in range(PICTURES):
        write_png(phantom(seed, hemorrhage=seed % 2 == 0, size=256), tmp_path / f"{seed}.png")
    is_its_own, alike = copies_of(sorted(tmp_path.glob("*.png")), edit, tmp_path)
    assert is_its_own.mean() >= 0.95 and np.median(alike) > 0.8


@pytest.mark.parametrize("edit", EDITS)
def test_a_slice_that_was_saved_anew_is_the_same_picture(
    shared_data: Path, edit: str, tmp_path: Path
) -> None:
    pictures = [
        path
        for path in sorted((shared_data / "ct_ich").rglob("*.jpg"))[10::60]
        if is_telling(hash_of(path))
    ]
    is_its_own, alike = copies_of(pictures, edit, tmp_path)
    assert (is_its_own & (alike >= SAME_PICTURE)).mean() >= 0.9


def test_no_slice_of_one_patient_counts_as_anothers(shared_data: Path) -> None:
    examples = [
        e
        for name in ("ct_ich", "phe_sich", "head_ct")
        for e in read_dataset(shared_data / name, keeps_bare=True).examples
    ]
    telling = [example for example in examples if is_telling(example.dhash)]
    assert len(examples) - len(telling) == 9
    dhashes = [example.dhash for example in telling]
    pairs = [(telling[one], telling[other]) for one, other in same_pictures(dhashes, dhashes)]
    assert len(pairs) >= len(telling), "a picture is like itself"
    assert [(one.group, other.group) for one, other in pairs if one.group != other.group] == []


def test_a_speck_in_a_small_picture_is_looked_at_like_any_other() -> None:
    for row in range(0, 128, 3):
        dark = np.full((128, 90), 0.01, np.float32)
        dark[row : row + 2, 40:42] = 0.4
        dhash, thumbnail = fingerprint(Slice(dark, "display"))
        assert len(dhash) == HASH_DIGITS and thumbnail.shape == (32, 32)


def test_phantoms_of_the_same_head_are_near_duplicates() -> None:
    looks = [
        fingerprint(Slice(phantom(seed % 7, hemorrhage=False, size=96).astype(np.float32), "hu"))
        for seed in range(21)
    ]
    dhashes, thumbnails = [dhash for dhash, _ in looks], [thumbnail for _, thumbnail in looks]
    assert near_duplicates(dhashes, thumbnails) == [
        (one, other) for one in range(21) for other in range(one + 1, 21) if one % 7 == other % 7
    ]
    assert list(same_pictures(dhashes[:1], dhashes)) == [(0, 0), (0, 7), (0, 14)]


def pictures_and_copies(pictures: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bits (n, 256) and thumbnails (n, 1024) of pictures and of copies of them. From the
    first copy to the last, the hash differs more and more and the thumbnail less and less, both
    from beyond what counts as a duplicate.
    """
    random = np.random.default_rng(1)
    common = random.normal(size=1024)
    bits = np.repeat(random.random((pictures, 256)) < 0.4, copies, axis=0)
    pixels = np.repeat(common + random.normal(size=(pictures, 1024)), copies, axis=0)
    noise = np.tile(np.linspace(0, 1, copies), pictures)[:, None]
    bits ^= random.random(bits.shape) < 0.08 * noise
    pixels += 0.35 * (1 - noise) * random.normal(size=pixels.shape)
    return bits, np.clip(128 + 25 * pixels, 0, 255).astype(np.uint8)


def test_the_search_finds_what_comparing_all_pairs_finds() -> None:
    bits, pixels = pictures_and_copies(150, 6)
    flat = pixels - pixels.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    alike = likeness(bits.astype(np.float32), bits.astype(np.float32))
    by_hash = alike >= SAME_PICTURE
    by_thumbnail = (alike >= CANDIDATE) & (flat @ flat.T >= DUPLICATE_CORRELATION)
    wanted = [tuple(pair) for pair in np.argwhere(np.triu(by_hash | by_thumbnail, 1)).tolist()]
    assert min((by_hash & ~by_thumbnail).sum(), (by_thumbnail & ~by_hash).sum()) > 100
    dhashes = [np.packbits(row).tobytes().hex() for row in bits]
    assert near_duplicates(dhashes, [row.reshape(32, 32) for row in pixels]) == wanted
    of_two = [tuple(pair) for pair in np.argwhere(by_hash[:300, 300:]).tolist()]
    assert list(same_pictures(dhashes[:300], dhashes[300:])) == of_two


def test_the_search_compares_few_images_with_each_whatever_their_number() -> None:
    def compared(images: int) -> float:
        bits, _ = pictures_and_copies(images, 1)
        return sum(len(one) for one, _ in similar_pairs(bits, bits, 17)) / images

    assert compared(3_000) < 2 * compared(500) < 200


def test_groups_join_what_shares_a_key_or_is_a_duplicate() -> None:
    assert assign_groups([["a"], ["b"], ["a", "c"], [], ["c"]], duplicates=[(1, 3)]) == [
        0,
        1,
        0,
        1,
        0,
    ]


def test_flat_pictures_are_not_duplicates() -> None:
    flat = np.zeros((32, 32), np.uint8)
    assert near_duplicates(["0" * HASH_DIGITS] * 2, [flat, flat]) == []


def test_hundreds_of_copies_of_one_picture_are_refused_before_their_pairs_fill_the_memory() -> None:
    picture = np.tile(np.arange(32, dtype=np.uint8), (32, 1))
    with pytest.raises(
        DatasetError,
        match=(
            r"^More than 110,000 pairs of images are near-duplicates; please remove the copies\.$"
        ),
    ):
        near_duplicates(["f" * HASH_DIGITS] * 500, [picture] * 500)


def test_folds_never_split_a_group_and_are_the_same_for_the_same_seed() -> None:
    groups = np.repeat([f"g{n}" for n in range(30)], 4)
    labels = np.repeat(np.arange(30) % 3 == 0, 4).astype(int)
    folds = list(stratified_group_folds(labels, groups, 5, seed=3))
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(120))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert labels[test].sum() == 8
    again = list(stratified_group_folds(labels, groups, 5, seed=3))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, again, strict=True))
    other = list(stratified_group_folds(labels, groups, 5, seed=4))
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(folds, other, strict=True))
