"""What is stored already of the series that a study brings: which scans hold a part of them, and
the copies of their slices that did not come again.
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
    """A scan that holds a part of a series of which more arrived.

    Attributes:
        series: the keyed hash of the series.
        instances: keyed hashes of its instances.
        answers: the destinations that get its result.
        copies: the stored copies of those that did not come again.
        originals: the original UIDs of the copies, by the new ones; empty where no result is sent
            back.
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
    """Return the scans that can become one with what arrived of their series.

    Args:
        scans: all scans of the study (`webapp.routing.received_scans`).
        files: what arrived.
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
        own = series_of_scan(scan)
        if own not in series:
            continue
        part = Part(scan.scan_id, own, scan.instances, scan.answers or {}, scan.stat)
        lacks = {each for each in scan.instances if series_of(each) == own} - arrived
        if not lacks:
            parts.append(part)
        elif scan.original_removed_at is None:
            again = [file for file in files if series_of(file.stem) == own]
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
    """Return a part with the copies of what did not come again; None if they cannot stand beside
    what arrived: they are gone, have UIDs of their own (as until the end of November 2026), or the
    result is to be sent back and nothing tells any more which their originals are. `taken` are the
    UIDs of the copies of newer parts, which these then lack.
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
    """Return which new scan takes the place of which parts, by its place in `held`.

    Args:
        held: what each new scan is made of: the keyed hashes of what arrived, and the id of its
            scan for each copy.
        is_known: tells whether instances of a series need no new scan.

    Raises:
        NothingNew: those of a part's series that are in new scans need none.
    """
    heirs: dict[int, list[Part]] = {}
    for part in parts:
        of_series = [[each for each in own if series_of(each) == part.series] for own in held]
        if is_known({each for own in of_series for each in own}):
            raise NothingNew
        its = {part.scan_id, *part.instances}
        shared = [sum(each in its for each in own) for own in held]
        heir = max(range(len(held)), key=lambda place: (shared[place], len(of_series[place])))
        heirs.setdefault(heir, []).append(part)
    return heirs


def series_of(name: str) -> str:
    """Return the keyed hash of the series of an instance."""
    return name.partition("-")[0]


def series_of_scan(scan: Row[Any]) -> str:
    """Return the keyed hash of the series of a scan, whose own instances come first."""
    return series_of(scan.instances[0])
