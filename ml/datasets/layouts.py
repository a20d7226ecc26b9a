"""The supported layouts of data sets: where images and labels are found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.class_folders import (
    CLASS_FOLDERS,
    LABEL_COLUMNS,
    NEGATIVE_FOLDERS,
    OPPOSITE_COLUMNS,
    SPLIT_FOLDERS,
    SPREADSHEET_SUFFIXES,
    TABLE_SUFFIXES,
    require_one_label,
    visible,
    word_of,
)
from ml.datasets.cq500 import from_cq500, is_cq500
from ml.datasets.examples import Example
from ml.datasets.listed_files import ListedFiles
from ml.datasets.rsna import from_rsna, is_rsna
from ml.datasets.scan_labels import add_scan_label, read_patients, with_scan_labels
from ml.datasets.tables import (
    NO_PATIENT,
    PATIENT_COLUMNS,
    boxes_outside,
    column_of,
    is_inside,
    label_of,
    read_label,
    read_table,
    require_no_formula,
    types_of,
    whole_number,
)
from ml.errors import DatasetError
from ml.scans.files import is_named_as_image

__all__ = ["DatasetError", "Example", "find_examples"]

NAME_COLUMNS = ("filename", "file", "path", "filepath", "image", "image_name", "image_id", "id")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ""}
MASKS = "masks"


def find_examples(
    root: Path, name: str, on_header: Callable[[int], None] = lambda total: None
) -> tuple[Path, str, list[Example], list[str]]:
    """Return the folder with the data, the layout, an example for each image (without opening it),
    and notes about irregularities.

    `group` is set where there is a patient column or a groups file, else empty.

    Args:
        root: the folder, or one that contains only that folder.
        name: name of the data set.
        on_header: called with the number of images or scans before each header is read, in layouts
            that need headers; raises to stop.

    Raises:
        DatasetError: no layout matches, a file is missing, or a label is invalid.
    """
    base = _descend(root)
    for table in (
        path for path in visible(base) if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()
    ):
        if is_rsna(table):
            return base, *from_rsna(base, table, name, on_header)
        if is_cq500(table):
            return base, *from_cq500(base, table, name, on_header)
    manifest = _manifest_of(base)
    if manifest is None:
        return base, "folders", *_from_folders(base, name)
    return base, *_from_manifest(base, manifest, name)


def _descend(root: Path) -> Path:
    """Return the folder that holds the data: `root`, or its only subfolder (as in most ZIP files),
    which may lie beside a few notes, and in which there may be another one.
    """
    if not root.is_dir():
        raise DatasetError(f"There is no folder {root}.")
    while True:
        inside = visible(root)
        folders = [path for path in inside if path.is_dir()]
        data = TABLE_SUFFIXES | SPREADSHEET_SUFFIXES | IMAGE_SUFFIXES - {""}
        if (
            len(folders) != 1
            or _is_class(folders[0])
            or any(path.is_file() and path.suffix.lower() in data for path in inside)
        ):
            return root
        root = folders[0]


def _is_class(folder: Path) -> bool:
    """Return whether a folder contains the images of one class; a data set may have such a name,
    too, but then has labels of its own.
    """
    return word_of(folder) in CLASS_FOLDERS and not any(
        word_of(path) in CLASS_FOLDERS | SPLIT_FOLDERS
        if path.is_dir()
        else path.suffix.lower() in TABLE_SUFFIXES | SPREADSHEET_SUFFIXES
        for path in visible(folder)
    )


def _manifest_of(base: Path) -> Path | None:
    tables = [
        p
        for p in visible(base)
        if p.suffix.lower() in TABLE_SUFFIXES and p.name not in ("groups.csv", "patients.csv")
    ]
    named = [p for p in tables if p.stem.lower() in ("labels", "manifest")]
    if named:
        return named[0]
    if len(tables) > 1:
        raise DatasetError(
            f"Several tables could hold the labels ({', '.join(p.name for p in tables)}); name one"
            " of them labels.csv."
        )
    return tables[0] if tables else None


@dataclass(frozen=True)
class _Manifest:
    """A table of images: its column names, and the files beside it.

    Attributes:
        path, base: the table, and the folder of the data set.
        dataset: its name.
        name, label, patient: column names; the last two are None if missing.
        groups: group by image name as written in the table.
        files: the images of the data set, to find those that the table names differently.
    """

    path: Path
    base: Path
    dataset: str
    name: str
    label: str | None
    patient: str | None
    groups: Mapping[str, str]
    files: ListedFiles

    @property
    def is_kaggle(self) -> bool:
        """Whether images are given by their numbers in the folder head_ct."""
        return self.name == "id"

    def example(self, row: Mapping[str, str], where: str) -> Example:
        """Return the example that a row describes; `where` is the row's place, for error messages.

        Raises:
            DatasetError: a name, label, outline or type is wrong, or the image is missing.
        """
        listed_name = row.get(self.name, "")
        require_no_formula(row, (self.name, self.patient, "scan", "mask"), where)
        if self.label is not None and self.label not in row:
            raise DatasetError(f"{where} ({listed_name}): the label is missing.")
        label = label_of(row.get(self.label or "", ""), "label", f"{where} ({listed_name})")
        if self.label is not None and (column := _contradicting_column(row, label)):
            raise DatasetError(
                f"{where} ({listed_name}): the columns {self.label} and {column} contradict each"
                " other."
            )
        name = self._file_of(listed_name, where)
        patient = row.get(self.patient, "") if self.patient else ""
        patient = "" if patient.lower() in NO_PATIENT else patient
        row_group = f"row {self.groups[listed_name]}" if listed_name in self.groups else ""
        return Example(
            self.base / name,
            name,
            label,
            patient or None,
            whole_number(row.get("slice", "")),
            f"patient {patient}" if patient else row_group,
            self.dataset,
            mask=_mask_of(self.base, name, row.get("mask", ""), where),
            types=types_of(row.get("subtypes"), label, where),
            scan=row.get("scan", "") if patient else "",
        )

    def _file_of(self, listed_name: str, where: str) -> str:
        """Return the name of the image's file within the data set."""
        name = listed_name.replace("\\", "/")
        if name.startswith("/") and (found := self.files.named_like(name.lstrip("/"))):
            return found  # the path on another computer
        if self.is_kaggle and (number := re.fullmatch(r"([0-9]{1,9})(\.0)?", listed_name)):
            name = f"head_ct/{int(number[1]):03d}.png"
            if not (self.base / name).is_file() and (self.base / "head_ct" / name).is_file():
                name = f"head_ct/{name}"  # as in Kaggle's own notebooks
        if not listed_name or not is_inside(name):
            raise DatasetError(
                f"{where}: {listed_name[:100]!r} is not the name of a file in the data set."
            )
        if (self.base / name).is_file():
            return Path(name).as_posix()
        found = self.files.named_like(name)
        if found is None:
            raise DatasetError(f"{where}: the image {name} is missing.")
        return found

    def require_sound(self, rows: Sequence[Mapping[str, str]], examples: Sequence[Example]) -> None:
        """Refuse groups of images that are not in the table, and images that are listed twice."""
        unknown_names = sorted(set(self.groups) - {row.get(self.name, "") for row in rows})
        if unknown_names:
            raise DatasetError(
                f"groups.csv names {unknown_names[0]}, which is not an image of {self.path.name};"
                " both must spell the names alike."
            )
        most_common, times = Counter(example.name for example in examples).most_common(1)[0]
        if times > 1:
            raise DatasetError(f"{self.path.name} lists {most_common} {times} times.")


def _from_manifest(
    base: Path, manifest: Path, dataset: str
) -> tuple[str, list[Example], list[str]]:
    header, rows = read_table(manifest)
    name_column, label_column = column_of(header, NAME_COLUMNS), column_of(header, LABEL_COLUMNS)
    of_patients = read_patients(base / "patients.csv")
    if name_column is None or (
        label_column is None and not of_patients and "scan_label" not in header
    ):
        raise DatasetError(
            f"{manifest.name} needs the columns filename and label (or id and hemorrhage); it has"
            f" {', '.join(header)}."
        )
    table = _Manifest(
        manifest,
        base,
        dataset,
        name_column,
        label_column,
        column_of(header, PATIENT_COLUMNS),
        _read_groups(base / "groups.csv"),
        ListedFiles(base, _images_in),
    )
    examples, odd_slices, odd_boxes = [], [], []
    for row in rows:
        where = f"{manifest.name}, line {row.line}"
        example = table.example(row, where)
        if row.get("slice") and example.slice is None:
            odd_slices.append(f"{row['slice'][:40]!r} of {example.name}")
        odd_boxes += [
            f"{box[:40]!r} of {example.name}" for box in boxes_outside(row.get("boxes", ""))
        ]
        key = (example.patient or "", example.scan)
        cells = row.get("scan_label", ""), row.get("scan_subtypes")
        add_scan_label(of_patients, key, *cells, where)
        examples.append(example)
    table.require_sound(rows, examples)
    examples, notes = with_scan_labels(examples, of_patients)
    notes += [*table.files.notes(manifest.name), *_notes_of_masks(base, examples)]
    if unlisted := _unlisted(base, examples):
        notes.append(
            f"{len(unlisted):,} images have no row in {manifest.name} and are left out; the first"
            f" is {unlisted[0]}."
        )
    if odd_slices:
        notes.append(
            f"Slice numbers that are not integers: {len(odd_slices)}, such as {odd_slices[0]};"
            " they are ignored."
        )
    if odd_boxes:
        notes.append(
            f"Boxes that do not lie within their picture: {len(odd_boxes)}, such as"
            f" {odd_boxes[0]}; a box is a type, center x, center y, width and height, as shares of"
            " the picture."
        )
    return "kaggle head_ct" if table.is_kaggle else "manifest", examples, notes


def _unlisted(base: Path, examples: Sequence[Example]) -> list[str]:
    """Return the names of the images that no example refers to, as image or as mask."""
    listed = {path for example in examples for path in (example.path, example.mask) if path}
    return sorted(
        path.relative_to(base).as_posix() for path in _images_in(base) if path not in listed
    )


def _images_in(base: Path) -> Iterator[Path]:
    """Yield the files that are named as images, except for masks."""
    yield from (
        path
        for path in base.rglob("*")
        if is_named_as_image(path, IMAGE_SUFFIXES - {""})
        and not _is_hidden(path, base)
        and path.relative_to(base).parts[0] != MASKS
        and path.is_file()
    )


def _notes_of_masks(base: Path, examples: Sequence[Example]) -> list[str]:
    """Return a note about the files in `masks/` that are named like no image."""
    used = {example.mask for example in examples}
    others = sorted(
        path.relative_to(base).as_posix()
        for path in (base / MASKS).rglob("*")
        if path.is_file() and path not in used and not _is_hidden(path, base)
    )
    return (
        [
            f"{len(others):,} files in {MASKS} are named like no image and are left out; the first"
            f" is {others[0]}."
        ]
        if others
        else []
    )


def _contradicting_column(row: Mapping[str, str], label: int | None) -> str | None:
    """Return the column of a row that contradicts its label; None if there is none."""
    if label is None:
        return None
    for column, cell in row.items():
        other, word = _label_in(cell), re.sub(r"[\s.-]", "_", column)
        if other is None:
            continue
        if (
            (word in LABEL_COLUMNS and other != label)
            or (word in OPPOSITE_COLUMNS and other == label)
            or (word in BLEEDING_TYPES and other > label)
        ):
            return column
    return None


def _label_in(cell: str) -> int | None:
    """Return the label in a cell; None if it has none."""
    try:
        return read_label(cell)
    except KeyError:
        return None


def _mask_of(base: Path, name: str, listed_name: str, where: str) -> Path | None:
    """Return the mask of an image: the one named in its row, or else the file of the same name in
    `masks/`, with all or some of its folders.
    """
    if listed_name:
        path = listed_name.replace("\\", "/")
        if not is_inside(path) or not (base / path).is_file():
            raise DatasetError(
                f"{where}: the mask {listed_name[:100]!r} is not a file of the data set."
            )
        return base / path
    same_name = Path(name).with_suffix(".png")
    candidates = [base / MASKS / Path(*same_name.parts[at:]) for at in range(len(same_name.parts))]
    return next((path for path in candidates if path.is_file()), None)


def _read_groups(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    header, rows = read_table(path)
    name_column = column_of(header, NAME_COLUMNS)
    if name_column is None or "group" not in header:
        raise DatasetError(
            f"{path.name} needs the columns id (or filename) and group; it has {', '.join(header)}."
        )
    groups: dict[str, str] = {}
    for row in rows:
        where, name = f"{path.name}, line {row.line}", row.get(name_column, "")
        require_no_formula(row, ("group",), where)
        group = row.get("group")
        if group and groups.setdefault(name, group) != group:
            raise DatasetError(
                f"{where}: {name[:100]} has the group {group[:60]}, but a different one in an"
                " earlier row."
            )
    return groups


def _from_folders(base: Path, dataset: str) -> tuple[list[Example], list[str]]:
    """Return the images in folders named after a class, including those inside a split's folder,
    and notes about the other folders and files.
    """
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    for folder in _class_folders(base, left_out):
        word = word_of(folder)
        types = frozenset({word}) if word in BLEEDING_TYPES else None
        label = 0 if word in NEGATIVE_FOLDERS else 1
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or _is_hidden(path, base):
                continue
            if not is_named_as_image(path, IMAGE_SUFFIXES):
                left_out[f"{path.suffix.lower()} files, which are not read"] += 1
                continue
            name = path.relative_to(base).as_posix()
            mask = _mask_of(base, name, "", dataset)
            examples.append(
                Example(path, name, label, None, None, "", dataset, mask=mask, types=types)
            )
    for path in visible(base):
        if path.is_file() and is_named_as_image(path, IMAGE_SUFFIXES - {""}):
            left_out["images outside the class folders"] += 1
    notes = [f"{count} files are left out: {what}." for what, count in left_out.items()]
    if not examples:
        tables = [path for path in visible(base) if path.suffix.lower() in SPREADSHEET_SUFFIXES]
        advice = [f" Please save {tables[0].name} as labels.csv."] if tables else []
        advice += [f" {note}" for note in notes[:1]]
        raise DatasetError(
            f"{dataset} has neither a table (labels.csv with the columns filename and label) "
            "nor one folder per class (such as hemorrhage and normal)." + "".join(advice)
        )
    return examples, [*notes, *_notes_of_masks(base, examples)]


def _class_folders(base: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Yield the folders named after a class; count the files of the others in `left_out`.

    Raises:
        DatasetError: one of them may hold other labels.
    """
    for folder in (path for path in visible(base) if path.is_dir()):
        word = word_of(folder)
        if word in CLASS_FOLDERS | SPLIT_FOLDERS:
            require_one_label(folder, base)
        if word in CLASS_FOLDERS:
            yield folder
        elif word in SPLIT_FOLDERS:
            yield from _class_folders(folder, left_out)
        elif word != MASKS:
            files = sum(path.is_file() and not _is_hidden(path, base) for path in folder.rglob("*"))
            left_out[f"the folder {folder.name} is named neither hemorrhage nor normal"] += files


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(base).parts)
