"""Titles of the scans of an upload: from the owner, from words in descriptions and in names of
folders and files that cannot be patient data, and numbers where these do not distinguish scans
("Scan 12" if there is nothing else).

Descriptions and names are free text, and may contain a patient's name, birth date or number. So
only these are used: the words in the lists below, slice thicknesses, kernels, and the number of an
examination ("Case 12") or of a folder of images whose name is a short number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from webapp.forms import MAX_TITLE
from webapp.intake.dicom import whole_number
from webapp.intake.series import SeriesFiles, printable

MAX_DESCRIPTION = 40
SUBJECTS = frozenset((
    "abdomen", "angio", "angiography", "ax", "axial", "bone", "bones", "brain", "cabeza",
    "cct", "cect", "cerebral", "cerebrum", "cervical", "cor", "coronal", "cranial",
    "cranium", "cráneo", "crâne", "ct", "cta", "ctp", "ctv", "ear", "face", "fossa", "hct",
    "head", "helical", "hirn", "hu", "iac", "kopf", "mip", "mpr", "ncct", "neck", "nect",
    "orbit", "orbits", "perfusion", "phantom", "sag", "sagittal", "schaedel", "schädel",
    "sequential", "sinus", "skull", "soft", "spine", "spiral", "stroke", "template",
    "temporal", "thick", "thin", "tra", "trauma",
))  # fmt: skip
"""Words that say what was scanned, or how."""
OTHERS = frozenset((
    "arterial", "contrast", "control", "delayed", "follow", "iv", "nativ", "native",
    "noncontrast", "plain", "pre", "protocol", "recon", "routine", "scan", "seq", "series",
    "slice", "standard", "std", "tissue", "unenhanced", "up", "venous", "vol", "volume",
    "window", "with", "without", "wo",
))  # fmt: skip
"""Words that are used only together with one of the `SUBJECTS`."""
ABBREVIATIONS = frozenset((
    "cct", "cect", "ct", "cta", "ctp", "ctv", "hct", "hu", "iac", "iv", "mip", "mpr",
    "ncct", "nect",
))  # fmt: skip
EXAMINATION = re.compile(
    r"(?:^|[\s_.#-])(case|exam|phantom|scan|study)[\s_.#-]*([0-9]{1,3})(?![0-9])", re.I
)
FOLDER = re.compile(r"[0-9]{1,3}")
EXTENSION = re.compile(r"(\.[a-z]{2,4}){1,2}$", re.I)
THICKNESS = re.compile(r"[0-9](\.[0-9]{1,3})?mm|[0-9]\.[0-9]{1,3}|10\.0", re.I)
KERNEL = re.compile(r"[BHJQU][rfvsu]?[0-9]{2}[fhs]?|FC[0-9]{2}")
SHORT = {"w/o": "without contrast", "w/": "with", "c-": "without contrast", "c+": "with contrast"}
BETWEEN_WORDS = re.compile(r"[\s_,;:()\[\]{}|^/\\+-]+|(?<=[a-z])(?=[A-Z])|\.(?![0-9])")
UNTITLED = re.compile(r"Scan ([0-9]{1,9})")
KINDS = {"dicom": "CT", "nifti": "NIfTI", "png": "PNG", "jpeg": "JPEG"}


def description_of(text: str) -> str:
    """Return the words of a description or a name that cannot be patient data; "" if they are not
    meaningful.
    """
    text = re.sub(r"(?<=[0-9]) mm\b", "mm", text)
    for short, words in SHORT.items():
        text = re.sub(rf"(?<!\w){re.escape(short)}(?!\w)", f" {words} ", text, flags=re.IGNORECASE)
    words_of: dict[str, str] = {}
    for word in BETWEEN_WORDS.split(text):
        low = word.lower()
        if low in ABBREVIATIONS:
            words_of.setdefault(low, word.upper())
        elif low in SUBJECTS or low in OTHERS:
            words_of.setdefault(low, low if word.isupper() and len(word) > 3 else word)
        elif THICKNESS.fullmatch(word) or KERNEL.fullmatch(word):
            words_of.setdefault(low, word)
    description = (
        " ".join(words_of.values())[:MAX_DESCRIPTION].strip() if words_of.keys() & SUBJECTS else ""
    )
    return description[:1].upper() + description[1:]


def titles_of(
    series: Sequence[SeriesFiles],
    studies: Sequence[tuple[object, ...]],
    title: str = "",
    *,
    number: int = 0,
    keep_names: bool = False,
) -> list[str]:
    """Return the title of each scan of an upload.

    Args:
        series: the scans of the upload.
        studies: the result of `webapp.intake.series.study_of` for each.
        title: the title that their owner gave.
        number: the position of this upload among the files and folders that were dropped together,
            from 1; 0 for a single upload.
        keep_names: the names of folders and files may be kept.
    """
    if len(series) == 1 and not number:
        return [title or (_name_of(series[0]) if keep_names else _described(series[0]))]
    sizes = Counter(studies)
    places = {study: str(place) for place, study in enumerate(dict.fromkeys(studies), number or 1)}
    names = [
        _name_of(scan)
        if keep_names
        else _described(scan, has_siblings=sizes[study] > 1) or _numbered(scan, place)
        for place, (scan, study) in enumerate(zip(series, studies, strict=True), number or 1)
    ]
    names = _with_studies(names, series, studies, places)
    names = unique_titles(_with_numbers(names, series))
    return [_joined(title, name) for name in names]


def untitled_number(titles: Iterable[str]) -> int:
    """Return the number of the next scan about which nothing is known, given its owner's titles."""
    numbers = [int(match[1]) for match in map(UNTITLED.fullmatch, titles) if match]
    return max(numbers, default=0) + 1


def unique_titles(titles: Iterable[str], existing: Iterable[str] = (), first: int = 2) -> list[str]:
    """Return unique titles, which are not among the `existing` ones either: duplicates get a
    number, from `first` on.
    """
    unique: list[str] = []
    used = set(existing)
    for title in titles:
        again, place = title, first
        while again in used:
            again, place = _with_ending(title, f" ({place})"), place + 1
        used.add(again)
        unique.append(again)
    return unique


def _described(scan: SeriesFiles, *, has_siblings: bool = False) -> str:
    """Return a title from headers and names, with the study's title if the study has several
    series; "" if there is none.
    """
    first = scan.files[0]
    header = first.dicom
    path = (first.folder or "").split("/")[:0:-1]  # The innermost folder first.
    numbers = [f"Folder {name}" for name in path if FOLDER.fullmatch(name)]
    if len(scan.files) == 1:
        path.insert(0, first.name)
    texts = [header.series_description, header.protocol, header.study_description, header.body_part]
    description = next(
        filter(None, map(description_of, texts if first.kind == "dicom" else path)), ""
    )
    study = next(filter(None, map(_examination_in, path)), "")
    if not study and numbers and first.kind != "dicom":  # A DICOM header says more.
        study = numbers[0]
    if description and has_siblings and not study:
        study = description_of(header.study_description)
    if study.startswith(description):  # For example, "Phantom" in "Phantom 3".
        description = ""
    return " · ".join(dict.fromkeys(filter(None, [study, description]))) + (
        scan.part if description or study else ""
    )


def _examination_in(name: str) -> str:
    """Return the numbered examination in a name, such as "Case 12"; "" if the name has other
    numbers.
    """
    name = EXTENSION.sub("", name)
    match = EXAMINATION.search(name)
    if not match or re.search(r"[0-9]", name[: match.start()] + name[match.end() :]):
        return ""
    return f"{match[1].capitalize()} {match[2]}"


def _numbered(scan: SeriesFiles, place: int) -> str:
    """Return the title of a scan about which nothing is known."""
    kind = scan.files[0].kind
    number = whole_number(scan.files[0].dicom.series_number)
    if kind == "dicom" and number is not None and scan.slice_count > 1:
        return f"Series {number}{scan.part}"
    return f"{KINDS[kind]} {'series' if scan.slice_count > 1 else 'slice'} {place}{scan.part}"


def _with_studies(
    names: Sequence[str],
    series: Sequence[SeriesFiles],
    studies: Sequence[tuple[object, ...]],
    places: dict[tuple[object, ...], str],
) -> list[str]:
    """Return the names, with the number of the study if several studies have the same name."""
    times = Counter(name for name, _ in set(zip(names, studies, strict=True)))
    unclear = {study for name, study in zip(names, studies, strict=True) if times[name] > 1}
    return [
        name
        if study not in unclear
        else f"Study {places[study]} · {name}"
        if scan.files[0].kind == "dicom"
        else f"{name} ({places[study]})"
        for name, scan, study in zip(names, series, studies, strict=True)
    ]


def _with_numbers(names: Sequence[str], series: Sequence[SeriesFiles]) -> list[str]:
    """Return the names, with the number of the series if several series have the same name."""
    numbers = [whole_number(scan.files[0].dicom.series_number) for scan in series]
    times = Counter(names)
    times_with_number = Counter(zip(names, numbers, strict=True))
    return [
        f"{name} (series {number})"
        if times[name] > 1 and number is not None and times_with_number[name, number] == 1
        else name
        for name, number in zip(names, numbers, strict=True)
    ]


def _name_of(scan: SeriesFiles) -> str:
    """Return the name of a single file, or of the folder of several files."""
    first = scan.files[0]
    folder = (first.folder or "").partition("/")[2].rpartition("/")[2]
    return printable(folder if folder and len(scan.files) > 1 else first.name)


def _joined(title: str, name: str) -> str:
    if not title or not name:
        return (title or name)[:MAX_TITLE]
    return _with_ending(title, f" · {name}")


def _with_ending(title: str, ending: str) -> str:
    return title[: MAX_TITLE - len(ending)] + ending
