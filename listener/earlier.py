"""The parts of a study's series that are already stored: the scans that hold them, and the copies
of those slices that were not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from listener.scp import header_of
from webapp.intake import PACKED, NewUids
from webapp.intake.completing import NothingNew, copies_of
from webapp.routing import LinkGone, instance_key, link_of
from webapp.storage import MissingFile


@dataclass(frozen=True)
class Part:
    """A scan that holds part of a series of which more has arrived.

    Attributes:
        series: the keyed hash of the series.
        instances: keyed hashes of its instances.
        answers: the destinations that get its result.
        copies: the stored copies of those that were not sent again.
        originals: the original UID of each copy, by its new UID; empty if no result is sent back.
    """

    scan_id: str
    series: str
    instances: Sequence[str]
    answers: Mapping[str, str]
    stat: bool
    copies: Sequence[Path] = ()
    originals: Mapping[str, str] = field(default_factory=dict)


def parts_of(
    scans: Sequence[Row[Any]],
    files: Sequence[Path],
    answers: Collection[str],
    uids: NewUids,
    folder: Path,
) -> list[Part]:
    """Return the scans that can be merged with what arrived of their series.

    Args:
        scans: all scans of the study (`webapp.routing.received_scans`).
        files: the files that arrived.
        answers: the destinations of their results.
        uids: gives the UIDs of the copies.
        folder: where copies are fetched to.

    Raises:
        StorageError: they cannot be read now.
    """
    arrived = {file.stem for file in files}
    series = {series_of(name) for name in arrived} - {series_of(instance_key("", ""))}
    parts: list[Part] = []
    taken: set[str] = set()
    for scan in scans:
        scan_series = series_of_scan(scan)
        if scan_series not in series:
            continue
        part = Part(scan.scan_id, scan_series, scan.instances, scan.answers or {}, scan.stat)
        lacks = {each for each in scan.instances if series_of(each) == scan_series} - arrived
        if not lacks:
            parts.append(part)
        elif scan.original_removed_at is None:
            again = [file for file in files if series_of(file.stem) == scan_series]
            is_sent = bool(answers or part.answers)
            grown = _with_copies(part, scan, again, uids, folder, taken, is_sent=is_sent)
            parts += [grown] if grown else []
    return parts


def _with_copies(
    part: Part,
    scan: Row[Any],
    again: Sequence[Path],
    uids: NewUids,
    folder: Path,
    taken: set[str],
    *,
    is_sent: bool,
) -> Part | None:
    """Return a part with the copies of the slices that were not sent again. Returns None if they
    cannot be merged with what arrived: the copies are gone, have unrelated UIDs (as until the end
    of November 2026), or the result must be sent back and their original UIDs are no longer known.
    `taken` holds the UIDs of copies in newer parts, which are not repeated here.
    """
    try:
        copies = copies_of(scan.original_key, folder / scan.scan_id)
    except MissingFile:
        return None
    headers = (header_of(path) for path in again)
    came = {uids(header.instance) for header in headers if header is not None}
    is_whole = not scan.original_key.endswith(PACKED) and scan.slice_count > 1
    left = [(uid, path) for uid, path in copies if uid not in came | taken]
    if any(not uids.has_given(uid) for uid, _ in copies) or (is_whole and left):
        return None
    originals: Mapping[str, str] = {}
    if left and is_sent:
        try:
            originals = link_of(scan.scan_id).uids
        except LinkGone:
            return None
    taken.update(uid for uid, _ in left)
    values = {**vars(part), "copies": [path for _, path in left], "originals": originals}
    return Part(**values)


def heirs_of(
    parts: Sequence[Part], held: Sequence[Sequence[str]], is_known: Callable[[Set[str]], bool]
) -> dict[int, list[Part]]:
    """Return the parts that each new scan replaces, by the index of the scan in `held`.

    Args:
        held: the sources of each new scan: the keyed hashes of instances that arrived, and for each
            copy the id of its scan.
        is_known: whether these instances of a series need no new scan.

    Raises:
        NothingNew: the new scans of a part's series hold nothing new.
    """
    heirs: dict[int, list[Part]] = {}
    for part in parts:
        of_series = [[each for each in names if series_of(each) == part.series] for names in held]
        if is_known({each for names in of_series for each in names}):
            raise NothingNew
        of_part = {part.scan_id, *part.instances}
        shared = [sum(each in of_part for each in names) for names in held]
        heir = max(range(len(held)), key=lambda place: (shared[place], len(of_series[place])))
        heirs.setdefault(heir, []).append(part)
    return heirs


def series_of(name: str) -> str:
    """Return the keyed hash of an instance's series."""
    return name.partition("-")[0]


def series_of_scan(scan: Row[Any]) -> str:
    """Return the keyed hash of a scan's series, given its instances."""
    return series_of(scan.instances[0])
