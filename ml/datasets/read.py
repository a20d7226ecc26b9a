"""Labelled images on disk: read in the layouts that people have, checked, grouped, described.

Whatever is wrong with a data set is said in one sentence that names the file or the row
(`DatasetError`), or, where the set stays usable, listed in `Dataset.problems`.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.dicom_headers import Header, read_header
from ml.datasets.examples import Example, scan_key, sha256_of, slice_of
from ml.datasets.groups import assign_groups, digest, look_at, near_duplicates
from ml.datasets.layouts import DatasetError, find_examples
from ml.scans.read import ORDER_GIVEN, BareImageError, ImageError, Series, read_series, render

__all__ = [
    "Dataset",
    "DatasetError",
    "Example",
    "contact_sheet",
    "explore",
    "read_dataset",
    "unpack",
]

ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 1024
"""What a name and a path may have on the file systems that there are, less the folder that it is
unpacked in.
"""


@dataclass(frozen=True)
class Dataset:
    """A data set that was read whole. `fingerprint` changes with any label, type of bleeding,
    group, name or file.

    `unread` are the images that cannot be read; `problems` says why, and what had to be assumed of
    the others.
    """

    name: str
    root: Path
    layout: str
    examples: tuple[Example, ...]
    problems: tuple[str, ...]
    fingerprint: str
    near_duplicates: tuple[tuple[str, str], ...] = ()
    unread: tuple[Example, ...] = ()


def unpack(
    archive: Path,
    into: Path,
    max_bytes: int = 4 * 2**30,
    max_files: int = 50_000,
    max_ratio: int = 200,
    on_file: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Unpack a ZIP file into the new folder `into` and return that folder; nothing stays behind on
    failure.

    `on_file` hears (files unpacked, files in all); what it raises is a failure.

    Names that lead outside or that no file can have, links, devices and encrypted files are refused
    before anything is written, and so is an archive that would grow beyond `max_bytes`, `max_files`
    or `max_ratio` times its own size, or that holds another one. Sizes and contents are looked at
    while writing, since an archive may lie about them.

    Raises:
        DatasetError: the file is no ZIP file or one of these limits is broken.
    """
    if into.exists():
        raise DatasetError(f"The folder {into.name} exists already.")
    limit = min(max_bytes, max_ratio * max(archive.stat().st_size, 1) + 2**20)
    complete = False
    try:
        into.mkdir(parents=True)
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            if len(members) > max_files:
                raise DatasetError(
                    f"The archive holds {len(members):,} files; at most {max_files:,} are allowed."
                )
            for info in members:
                _require_safe(info)
            _extract(opened, members, into, limit, on_file)
        complete = True
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        UnicodeDecodeError,
    ) as err:
        raise DatasetError(f"{archive.name} is not a readable ZIP file.") from err
    finally:
        if not complete:
            shutil.rmtree(into, ignore_errors=True)
    return into


def _require_safe(info: zipfile.ZipInfo) -> None:
    parts = Path(info.filename.replace("\\", "/")).parts
    leads_outside = ".." in parts or info.filename.startswith(("/", "\\")) or ":" in info.filename
    if leads_outside or stat.S_ISLNK(info.external_attr >> 16):
        raise DatasetError(f"The archive holds {info.filename[:100]!r}, which leads outside it.")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise DatasetError(f"The archive holds {info.filename[:100]!r}, which is no plain file.")
    longest = max((len(part.encode()) for part in parts), default=0)
    if (
        not info.filename.isprintable()
        or longest > MAX_NAME_BYTES
        or len(info.filename.encode()) > MAX_PATH_BYTES
    ):
        raise DatasetError(
            f"The archive holds {info.filename[:100]!r}, which is too long or too odd for the name"
            " of a file."
        )
    if info.flag_bits & 1:
        raise DatasetError("The archive is encrypted; give it without a password.")


def _extract(
    opened: zipfile.ZipFile,
    members: Sequence[zipfile.ZipInfo],
    into: Path,
    limit: int,
    on_file: Callable[[int, int], None],
) -> None:
    written = 0
    for done, info in enumerate(members):
        on_file(done, len(members))
        target = into / info.filename
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sink = target.open("xb")
        except (FileExistsError, NotADirectoryError) as err:
            raise DatasetError(f"The archive holds {info.filename[:100]!r} twice.") from err
        with sink, opened.open(info) as source:
            while block := source.read(2**20):
                if not sink.tell() and block.startswith(ZIP_SIGNATURES):
                    raise DatasetError(
                        f"The archive holds another archive, {info.filename[:100]!r}; please unpack"
                        " that one first."
                    )
                written += len(block)
                if written > limit:
                    raise DatasetError(
                        f"The archive grows beyond {limit / 2**20:,.0f} MB when unpacked; that is"
                        " not allowed."
                    )
                sink.write(block)


def read_dataset(
    root: Path,
    name: str | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    needs_both_classes: bool = True,
    keeps_bare: bool = False,
    decode: Callable[..., Series] = read_series,
) -> Dataset:
    """Read a data set: its labels, every image, and what belongs together.

    Layouts: Kaggle's head_ct (`labels.csv` with `id` and `hemorrhage`, `head_ct/NNN.png`, perhaps a
    `groups.csv`); a manifest with the columns `filename` and `label`, perhaps `patient`, `slice`
    and `scan_label`, perhaps with a `patients.csv` that labels whole scans; one folder a class; the
    RSNA's of 2019 (`ml.datasets.rsna`); CQ500's (`ml.datasets.cq500`).

    Args:
        root: the folder, or one that holds nothing but that folder.
        name: what the set is called; the folder's name if left out.
        on_image: told (images read, images in all) after each, and before where their headers are
            read first; raises to stop.
        needs_both_classes: False where the set is only scored, or judged as far as its labels go.
        keeps_bare: keep a slice that shows next to nothing, such as air above the crown, where its
            patient has others that do not.
        decode: what reads every image and outline here first: `ml.scans.read.read_series`, or the
            same elsewhere under limits.

    Raises:
        DatasetError: no layout fits, an image is missing, a label is unreadable, one class only, or
            no image is left.
    """
    name = name or root.resolve().name
    base, layout, examples, odd = find_examples(root, name, lambda total: on_image(0, total))
    if needs_both_classes and (missing := _missing_class(examples)):
        raise DatasetError(f"The data set {name} holds no {missing}; both classes are needed.")
    looked, thumbnails, headers, problems = _look_at_all(examples, on_image, keeps_bare, decode)
    if not looked or (needs_both_classes and _missing_class(looked)):
        raise DatasetError(
            f"Too many images of {name} are unreadable; the first: {(problems or odd)[0]}"
        )
    problems = odd + problems
    looked = _placed(looked, headers)
    pairs = near_duplicates([example.dhash for example in looked], thumbnails)
    numbers = assign_groups(
        [[("group", example.group)] if example.group else [] for example in looked], pairs
    )
    grouped = tuple(
        replace(example, group=f"{name}/{looked[number].name}")
        for example, number in zip(looked, numbers, strict=True)
    )
    for first, second in pairs:
        one, other = grouped[first], grouped[second]
        if (
            None not in (one.label, other.label)
            and one.label != other.label
            and (not one.patient or one.patient != other.patient)
        ):
            problems.append(
                f"{one.name} and {other.name} look the same but carry different labels."
            )
    fingerprint = digest(
        *sorted(f"{e.name}\t{e.label}\t{e.group}\t{e.sha256}{_told_more(e)}" for e in grouped)
    )
    duplicates = tuple(
        (grouped[i].name, grouped[j].name)
        for i, j in pairs
        if not looked[i].patient or looked[i].patient != looked[j].patient
    )
    read = {example.name for example in grouped}
    unread = tuple(example for example in examples if example.name not in read)
    return Dataset(name, base, layout, grouped, tuple(problems), fingerprint, duplicates, unread)


def _told_more(example: Example) -> str:
    """Return what the fingerprint holds of types of bleeding and of the scan: nothing where nothing
    was told, as before it could be.
    """
    told = "\t" + "|".join(sorted(example.types)) if example.types else ""
    if example.scan_label is not None:
        told += f"\tscan {example.scan_label} " + "|".join(sorted(example.scan_types or ()))
    return told


def explore(dataset: Dataset) -> dict[str, object]:
    """Describe a data set for a page or a terminal; every value can be written as JSON.

    Among the facts are:
        scan_labels: how many scans are {"positive", "negative", "unknown"}, and of how many only
        the whole is labelled ("as_wholes"). An
            image without a patient is a scan.
        types: {type of bleeding: {"slices": n, "patients": n}}, empty where the data set tells of
        none.
    """
    examples = dataset.examples
    widths, heights = np.array([e.width for e in examples]), np.array([e.height for e in examples])
    modes = sorted({example.mode for example in examples})
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "fingerprint": dataset.fingerprint,
        "images": len(examples),
        "positive": sum(example.label == 1 for example in examples),
        "negative": sum(example.label == 0 for example in examples),
        "unknown": sum(example.label is None for example in examples),
        "patients": len({example.patient for example in examples if example.patient}),
        "groups": len({example.group for example in examples}),
        **_scans_counted(examples),
        "types": _types_counted(examples),
        "near_duplicates": [list(pair) for pair in dataset.near_duplicates],
        "sizes": {
            side: {
                "min": int(values.min()),
                "median": int(np.median(values)),
                "max": int(values.max()),
            }
            for side, values in (("width", widths), ("height", heights))
        },
        "modes": {mode: sum(example.mode == mode for example in examples) for mode in modes},
        "problems": list(dataset.problems),
    }


def _scans_counted(examples: Sequence[Example]) -> dict[str, object]:
    labels: dict[object, set[int | None]] = {}
    wholes: dict[object, int] = {}
    for example in examples:
        labels.setdefault(scan_key(example), set()).add(example.label)
        if example.scan_label is not None:
            wholes[scan_key(example)] = example.scan_label
    of_scans = [
        max((one for one in (*found, wholes.get(key)) if one is not None), default=None)
        for key, found in labels.items()
    ]
    counts = {
        name: of_scans.count(label)
        for name, label in (("positive", 1), ("negative", 0), ("unknown", None))
    }
    return {
        "scans": len(labels),
        "scan_labels": counts | {"as_wholes": sum(labels[key] == {None} for key in wholes)},
    }


def _types_counted(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    if all(example.types is None and example.scan_types is None for example in examples):
        return {}
    counted = {}
    for name in BLEEDING_TYPES:
        showing = [example for example in examples if name in (example.types or ())]
        of_scans = [example for example in examples if name in (example.scan_types or ())]
        patients = {example.patient or example.name for example in (*showing, *of_scans)}
        counted[name] = {"slices": len(showing), "patients": len(patients)}
    return counted


def contact_sheet(dataset: Dataset, n: int = 24, max_px: int = 160) -> Image.Image:
    """Return `n` images spread over the data set as one grey picture, hemorrhage in the upper half;
    any, where no label is known.

    Each tile is a square of `max_px`; a row holds eight.
    """
    columns = 8
    rows_of_tiles: list[list[Example]] = []
    labels = (1, 0) if any(example.label is not None for example in dataset.examples) else (None,)
    for label in labels:
        of_class = [example for example in dataset.examples if example.label == label]
        chosen = [
            of_class[i]
            for i in np.linspace(0, len(of_class) - 1, min(max(n // 2, 1), len(of_class))).astype(
                int
            )
        ]
        rows_of_tiles += [chosen[i : i + columns] for i in range(0, len(chosen), columns)]
    sheet = Image.new("L", (columns * max_px, len(rows_of_tiles) * max_px))
    for row, tiles in enumerate(rows_of_tiles):
        for column, example in enumerate(tiles):
            tile = render(slice_of(example), max_px)
            sheet.paste(
                tile,
                (
                    column * max_px + (max_px - tile.width) // 2,
                    row * max_px + (max_px - tile.height) // 2,
                ),
            )
    return sheet


def _missing_class(examples: Sequence[Example]) -> str | None:
    found = {example.label for example in examples} | {example.scan_label for example in examples}
    return (
        "image with hemorrhage"
        if 1 not in found
        else "image without hemorrhage"
        if 0 not in found
        else None
    )


def _look_at_all(
    examples: Sequence[Example],
    on_image: Callable[[int, int], None],
    keeps_bare: bool,
    decode: Callable[..., Series],
) -> tuple[list[Example], list[np.ndarray], dict[str, Header], list[str]]:
    """Decode every image once.

    Returns the readable ones with their facts, their thumbnails, by name what the DICOM files of
    patients say of their places, and what was wrong or had to be assumed.
    """
    looked, thumbnails, problems = [], [], []
    headers: dict[str, Header] = {}
    bare: dict[str, str] = {}
    assumed: Counter[str] = Counter()

    def noting(paths: Sequence[Path], **how: bool) -> Series:
        series = decode(paths, **how)
        assumed.update(set(series.warnings) - {ORDER_GIVEN})
        return series

    for done, example in enumerate(examples, start=1):
        try:
            try:
                shown = slice_of(example, decode=noting)
            except BareImageError as err:
                if not keeps_bare or not example.patient:
                    raise
                shown = slice_of(example, may_be_bare=True, decode=noting)
                bare[example.name] = str(err)
        except ImageError as err:
            problems.append(f"{example.name} is left out: {err}")
            continue
        finally:
            on_image(done, len(examples))
        if example.mask is not None:
            try:
                decode([example.mask], may_be_bare=True)
            except ImageError as err:
                problems.append(f"The outline of {example.name} is left out: {err}")
                example = replace(example, mask=None)
        dhash, thumbnail = look_at(shown)
        height, width = shown.pixels.shape
        mode = _mode(example.path)
        looked.append(
            replace(
                example,
                sha256=sha256_of(example),
                dhash=dhash,
                width=width,
                height=height,
                mode=mode,
            )
        )
        thumbnails.append(thumbnail)
        if mode == "DICOM" and example.patient and not example.beside:
            # its pixels were read all the same; its scan has no places then
            with suppress(ImageError):
                headers[example.name] = read_header(example.path)
    with_others = {example.patient for example in looked if example.name not in bare}
    kept = [
        number
        for number, example in enumerate(looked)
        if example.name not in bare or example.patient in with_others
    ]
    problems += [
        f"{e.name} is left out: {bare[e.name]}"
        for e in looked
        if e.name in bare and e.patient not in with_others
    ]
    problems += [
        f"{count} of {len(examples)} images: {sentence}"
        for sentence, count in assumed.most_common()
    ]
    return (
        [looked[number] for number in kept],
        [thumbnails[number] for number in kept],
        headers,
        problems,
    )


def _placed(examples: Sequence[Example], headers: Mapping[str, Header]) -> list[Example]:
    """Return the examples, with their places where the DICOM files of a whole scan know them and
    are of one series.
    """
    of_scan: dict[tuple[str, str, str], list[Header | None]] = {}
    for example in examples:
        of_scan.setdefault(scan_key(example), []).append(headers.get(example.name))
    places: dict[Path, float] = {}
    for found in of_scan.values():
        known = {
            header.path: header.place_mm
            for header in found
            if header and header.place_mm is not None
        }
        if len(known) == len(found) and len({header.series for header in found if header}) == 1:
            places |= known
    return [replace(example, place_mm=places.get(example.path)) for example in examples]


def _mode(path: Path) -> str:
    """Return the file's kind of pixels as Pillow names it ("L", "RGBA"), or "DICOM"."""
    try:
        # what a DICOM file's preamble claims to be is not tried
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return str(image.mode)
    except UnidentifiedImageError:
        return "DICOM"
