"""Read labeled images from disk in several layouts, and check, group and describe them.

Layouts: Kaggle's head_ct (`labels.csv` with `id` and `hemorrhage`, `head_ct/NNN.png`, perhaps a
`groups.csv`); a manifest with the columns `filename` and `label`, perhaps `patient`, `scan` (which
tells a patient's scans apart), `slice`, `subtypes`, `scan_label` and `scan_subtypes`, perhaps with
a `patients.csv` that labels whole scans; one folder per class; RSNA 2019 (`ml.datasets.rsna`);
CQ500 (`ml.datasets.cq500`).

Problems are raised as `DatasetError` with a sentence that names the file or row, or, if the data
set remains usable, listed in `Dataset.problems`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ml.checkpoints import digest
from ml.datasets.corrections import with_corrections
from ml.datasets.dicom_headers import Header, read_header
from ml.datasets.examples import Example, scan_key, sha256_of, slice_of
from ml.datasets.groups import assign_groups
from ml.datasets.layouts import find_examples
from ml.datasets.near_duplicates import fingerprint, near_duplicates
from ml.errors import BareImageError, DatasetError, ImageError
from ml.scans.read import ORDER_GIVEN, read_series
from ml.scans.repairs import INVERTED, WHITE_MARGIN
from ml.scans.slices import Series, Slice

LEFT_OUT, MASK_LEFT_OUT, CONTRADICTION, ASSUMPTION = (
    "left out",
    "mask left out",
    "contradiction",
    "assumption",
)
"""The kinds of problems with an image: it is unreadable; its mask contradicts the image or label; a
near-duplicate has another label; something about it had to be assumed.
"""
LARGEST_OUTLINE = 0.5
"""Maximum share of an image that a hemorrhage may cover."""


@dataclass(frozen=True)
class Problem:
    """A problem with one image: a kind, such as `LEFT_OUT`, and a sentence."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Dataset:
    """A data set. `fingerprint` changes with any label, type of hemorrhage, group, name or file.

    `unread` are the unreadable images; `problems` lists the reasons, and assumptions about other
    images; `image_problems` lists the same by the name of the image.
    """

    name: str
    root: Path
    layout: str
    examples: tuple[Example, ...]
    problems: tuple[str, ...]
    fingerprint: str
    near_duplicates: tuple[tuple[str, str], ...] = ()
    unread: tuple[Example, ...] = ()
    image_problems: Mapping[str, Sequence[Problem]] = field(default_factory=dict)


def read_dataset(
    root: Path,
    name: str | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    needs_both_classes: bool = True,
    keeps_bare: bool = False,
    decode: Callable[..., Series] = read_series,
    corrections: Mapping[str, int | None] | None = None,
) -> Dataset:
    """Read a data set in one of the layouts above: labels, images and groups.

    One function, because it is a sequence of steps, each of which uses the results of the previous
    ones.

    Args:
        root: the folder, or one that contains only that folder.
        name: name of the data set; default: name of the folder.
        on_image: called with (images read, number of images) after each image, and before reading
            if headers are read first; raises to stop.
        needs_both_classes: False if the data set is used for prediction or evaluation only.
        keeps_bare: keep nearly empty slices, such as air above the vertex, if the patient has
            others.
        decode: reads images and masks: `ml.scans.read.read_series`, or the same in a process with
            limits.
        corrections: labels by image name, which replace those in the files
            (`ml.datasets.corrections`).

    Raises:
        DatasetError: no layout matches, an image is missing, a label is invalid, there is only one
            class, no image is left, or there is no image that is to be corrected.
    """
    name = name or root.resolve().name
    base, layout, examples, odd = find_examples(root, name, lambda total: on_image(0, total))
    examples = with_corrections(examples, corrections or {})
    if needs_both_classes and (missing := _missing_class(examples)):
        sentence = f"The data set {name} holds no {missing}; both classes are needed."
        raise DatasetError(" ".join([sentence, *(odd[:1] if layout == "folders" else [])]))
    seen = _look_at_all(examples, on_image, keeps_bare, decode)
    if not seen.examples or (needs_both_classes and _missing_class(seen.examples)):
        raise DatasetError(
            f"Too many images of {name} are unreadable; the first: {(seen.problems or odd)[0]}"
        )
    problems = odd + seen.problems
    looked = _placed(seen.examples, seen.headers)
    pairs = near_duplicates([example.dhash for example in looked], seen.thumbnails)
    grouped = _grouped(name, looked, pairs)
    for first, second in _contradictions(grouped, pairs):
        problems.append(f"{first.name} and {second.name} look the same but have different labels.")
        for example, duplicate in ((first, second), (second, first)):
            seen.note(
                example.name,
                CONTRADICTION,
                f"{duplicate.name} looks the same but has another label.",
            )
    fingerprint = digest(
        *sorted(f"{e.name}\t{e.label}\t{e.group}\t{e.sha256}{_extra_labels(e)}" for e in grouped)
    )
    duplicates = tuple(
        (first.name, second.name) for first, second in _of_two_patients(grouped, pairs)
    )
    read = {example.name for example in grouped}
    unread = tuple(example for example in examples if example.name not in read)
    return Dataset(
        name,
        base,
        layout,
        grouped,
        tuple(problems),
        fingerprint,
        duplicates,
        unread,
        seen.of_images,
    )


def _grouped(
    name: str, examples: Sequence[Example], pairs: Sequence[tuple[int, int]]
) -> tuple[Example, ...]:
    """Return the examples with their final groups, which near-duplicates share."""
    numbers = assign_groups(
        [[("group", example.group)] if example.group else [] for example in examples], pairs
    )
    return tuple(
        replace(example, group=f"{name}/{examples[number].name}")
        for example, number in zip(examples, numbers, strict=True)
    )


def _contradictions(
    examples: Sequence[Example], pairs: Sequence[tuple[int, int]]
) -> list[tuple[Example, Example]]:
    """Return the near-duplicates of different patients whose labels differ."""
    return [
        (first, second)
        for first, second in _of_two_patients(examples, pairs)
        if None not in (first.label, second.label) and first.label != second.label
    ]


def _of_two_patients(
    examples: Sequence[Example], pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Example, Example]]:
    """Yield the near-duplicates that are not known to belong to the same patient."""
    for first, second in pairs:
        one, other = examples[first], examples[second]
        if not one.patient or one.patient != other.patient:
            yield one, other


def _extra_labels(example: Example) -> str:
    """Return the part of the fingerprint for types of hemorrhage and scan-level labels: empty
    without them, so that older fingerprints remain valid.
    """
    line = "\t" + "|".join(sorted(example.types)) if example.types else ""
    if example.scan_label is not None:
        line += f"\tscan {example.scan_label} " + "|".join(sorted(example.scan_types or ()))
    return line


def _missing_class(examples: Sequence[Example]) -> str | None:
    labels = {example.label for example in examples} | {example.scan_label for example in examples}
    return (
        "image with hemorrhage"
        if 1 not in labels
        else "image without hemorrhage"
        if 0 not in labels
        else None
    )


@dataclass
class _Looked:
    """The results of decoding every image of a data set once.

    Attributes:
        decode, keeps_bare: see `read_dataset`.
        examples: the readable examples with their hashes.
        thumbnails: theirs.
        headers: DICOM headers of the files with a patient, by name.
        problems: problems and assumptions.
        bare: by name, why a nearly empty image would be refused.
        assumed: the number of images of each assumption.
        of_images: by name, the problem of an image.
    """

    decode: Callable[..., Series]
    keeps_bare: bool
    examples: list[Example] = field(default_factory=list)
    thumbnails: list[np.ndarray] = field(default_factory=list)
    headers: dict[str, Header] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    bare: dict[str, str] = field(default_factory=dict)
    assumed: Counter[str] = field(default_factory=Counter)
    of_images: dict[str, list[Problem]] = field(default_factory=dict)

    def note(self, name: str, kind: str, sentence: str) -> None:
        """Record a problem of an image."""
        self.of_images.setdefault(name, []).append(Problem(kind, sentence))

    def add(self, example: Example) -> None:
        """Decode an image and add it with its hashes, or the reason why it is left out."""
        try:
            shown = self._decoded(example)
        except ImageError as err:
            self.problems.append(f"{example.name} is left out: {err}")
            self.note(example.name, LEFT_OUT, str(err))
            return
        example = self._with_sound_mask(example, shown)
        dhash, thumbnail = fingerprint(shown)
        height, width = shown.pixels.shape
        example = replace(
            example,
            sha256=sha256_of(example),
            dhash=dhash,
            width=width,
            height=height,
            mode=_mode(example.path),
        )
        self.examples.append(example)
        self.thumbnails.append(thumbnail)
        if example.mode == "DICOM" and example.patient and not example.beside:
            # its pixels were readable; its scan then has no positions
            with suppress(ImageError):
                self.headers[example.name] = read_header(example.path)

    def _decoded(self, example: Example) -> Slice:
        try:
            return slice_of(example, decode=self._noting(example.name))
        except BareImageError as err:
            if not self.keeps_bare or not example.patient:
                raise
            self.bare[example.name] = str(err)
            return slice_of(example, may_be_bare=True, decode=self._noting(example.name))

    def _noting(self, name: str) -> Callable[..., Series]:
        def decode(paths: Sequence[Path], **how: bool) -> Series:
            series = self.decode(paths, **how)
            for sentence in sorted(set(series.warnings) - {ORDER_GIVEN}):
                self.assumed[sentence] += 1
                self.note(name, ASSUMPTION, sentence)
            return series

        return decode

    def _with_sound_mask(self, example: Example, shown: Slice) -> Example:
        """Return the example, without its mask if that contradicts the image or label."""
        if example.mask is None:
            return example
        try:
            series = self.decode([example.mask], may_be_bare=True, crops=False)
        except ImageError as err:
            reason = str(err)
        else:
            reason = _contradiction(example, series, shown.pixels.shape)
        if reason:
            self.problems.append(f"The mask of {example.name} is left out: {reason}")
            self.note(example.name, MASK_LEFT_OUT, reason)
            return replace(example, mask=None)
        return example

    def leave_out_bare(self) -> None:
        """Leave out the nearly empty images of patients who have no others."""
        with_others = {
            example.patient for example in self.examples if example.name not in self.bare
        }
        examples, thumbnails = self.examples, self.thumbnails
        self.examples, self.thumbnails = [], []
        for example, thumbnail in zip(examples, thumbnails, strict=True):
            if example.name in self.bare and example.patient not in with_others:
                self.problems.append(f"{example.name} is left out: {self.bare[example.name]}")
                self.note(example.name, LEFT_OUT, self.bare[example.name])
            else:
                self.examples.append(example)
                self.thumbnails.append(thumbnail)


def _contradiction(example: Example, drawn: Series, shape: tuple[int, ...]) -> str:
    """Return how a mask contradicts its image or label, as a sentence; empty if it does not."""
    mask = drawn.slices[0].pixels
    if mask.shape != shape:
        sizes = f"{mask.shape[1]} x {mask.shape[0]}", f"{shape[1]} x {shape[0]}"
        return f"it has {sizes[0]} pixels, its image {sizes[1]}."
    if example.label == 0 and mask.any():
        return "it outlines a hemorrhage, and the label says that there is none."
    if {WHITE_MARGIN, INVERTED} & set(drawn.warnings) or (mask > 0).mean() > LARGEST_OUTLINE:
        return "it outlines most of the image; what is not hemorrhage must be black."
    return ""


def _look_at_all(
    examples: Sequence[Example],
    on_image: Callable[[int, int], None],
    keeps_bare: bool,
    decode: Callable[..., Series],
) -> _Looked:
    """Decode every image once."""
    looked = _Looked(decode, keeps_bare)
    for done, example in enumerate(examples, start=1):
        looked.add(example)
        on_image(done, len(examples))
    looked.leave_out_bare()
    looked.problems += [
        f"{count} of {len(examples)} images: {sentence}"
        for sentence, count in looked.assumed.most_common()
    ]
    return looked


def _placed(examples: Sequence[Example], headers: Mapping[str, Header]) -> list[Example]:
    """Return the examples with their positions, if all DICOM files of a scan have one and are of
    one series.
    """
    of_scan: dict[tuple[str, str, str], list[Header | None]] = {}
    for example in examples:
        of_scan.setdefault(scan_key(example), []).append(headers.get(example.name))
    places: dict[Path, float] = {}
    for headers_of_scan in of_scan.values():
        known = {
            header.path: header.place_mm
            for header in headers_of_scan
            if header and header.place_mm is not None
        }
        tells = len(known) == len(headers_of_scan) and (
            len(known) == 1 or len(set(known.values())) > 1
        )
        if tells and len({header.series for header in headers_of_scan if header}) == 1:
            places |= known
    return [replace(example, place_mm=places.get(example.path)) for example in examples]


def _mode(path: Path) -> str:
    """Return Pillow's mode of the file ("L", "RGBA"), or "DICOM"."""
    try:
        # the preamble of a DICOM file may look like another format
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return str(image.mode)
    except UnidentifiedImageError:
        return "DICOM"
