"""Joins submitted images into one series, and splits a series of images into single ones.

New files are stored before any row changes, and old files are deleted afterwards: whatever happens
in between, either the old or the new state is complete.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import delete, select

from webapp.audit import record
from webapp.deletion import FILES_S, discard, files_of
from webapp.extensions import db, retry_deadlocks
from webapp.forms import MAX_TITLE, text_problem
from webapp.intake.accept import number_untitled
from webapp.intake.clean_copy import Taken, UploadRejected
from webapp.intake.originals import PACKED, SUFFIXES, disk_has_room, store_series
from webapp.intake.pictures import copy_jpeg, copy_png
from webapp.intake.series import PICTURES, Pictures, series_of
from webapp.intake.spool import incoming_folder
from webapp.intake.streams import DamagedFile
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import IN_ITS_TURN, Act, Opinion, Scan, Share, lead_on, new_id, urgent_room
from webapp.models.accounts import lock_person
from webapp.models.learning import enter_successor
from webapp.space import require_space
from webapp.storage import storage


class NotRearranged(ValueError):
    """These scans cannot be joined or split; the text is a sentence for their owner."""


def may_be_joined(scan: Scan) -> bool:
    """Return whether a scan is a single image whose file is still stored."""
    return (
        scan.kind in PICTURES
        and not scan.original_key.endswith(PACKED)
        and scan.original_removed_at is None
    )


def may_be_split(scan: Scan) -> bool:
    """Return whether a scan is a series of images whose files are still stored."""
    return (
        scan.kind in PICTURES
        and scan.original_key.endswith(PACKED)
        and scan.original_removed_at is None
    )


def join_pictures(user_id: str, scan_ids: Sequence[str], title: str) -> Scan:
    """Make one series from a user's single images, in this order; it replaces them and is
    queued.

    Raises:
        NotRearranged: they are not single images of one kind, are too many, or changed meanwhile.
        StorageError: their files cannot be read, or the series cannot be stored.
    """
    if problem := text_problem(title, MAX_TITLE):
        raise NotRearranged(f"Invalid title. {problem}")
    scans = _own(user_id, scan_ids)
    if len(scans) < 2:
        raise NotRearranged("Please select at least two images.")
    if not all(may_be_joined(scan) for scan in scans):
        raise NotRearranged("Only single PNG or JPEG images can be joined.")
    _require_no_opinions(scans)
    if len({scan.kind for scan in scans}) > 1:
        raise NotRearranged("PNG and JPEG images cannot be joined into one series.")
    is_of_one_study = len({scan.study_id for scan in scans}) == 1
    joined = Scan(
        id=new_id(),
        user_id=user_id,
        study_id=scans[0].study_id if is_of_one_study else new_id(),
        title=title,
        kind=scans[0].kind,
        slice_count=len(scans),
        stat=any(scan.stat for scan in scans),
        uncut=any(scan.uncut for scan in scans),
        notes=_notes(scans),
        created_at=max(scan.created_at for scan in scans),
    )
    number_untitled([joined])
    joined.original_key = f"originals/{joined.id}{PACKED}"
    require_space(sum(scan.size for scan in scans))
    db.session.commit()  # No transaction is open while files are read and stored.
    with disk_has_room(), TemporaryDirectory(dir=incoming_folder()) as folder:
        files = [_fetched(scan, place, Path(folder)) for place, scan in enumerate(scans, start=1)]
        try:
            [series] = series_of(files, Pictures.TOGETHER)
        except UploadRejected as err:
            raise NotRearranged(str(err)) from err
        joined.size = store_series(joined.original_key, series)
    _replace(scans, [joined], Act.SCANS_JOINED)
    return joined


def _require_no_opinions(scans: Sequence[Scan]) -> None:
    """Check that replacing these scans deletes no opinions or shares of others.

    Raises:
        NotRearranged: a scan has opinions or is shared.
    """
    ids = [scan.id for scan in scans]
    for table in (Opinion, Share):
        if db.session.scalar(select(table.id).where(table.scan_id.in_(ids)).limit(1)):
            raise NotRearranged(
                "Scans that are shared or have opinions cannot be joined or split; stop sharing and"
                " withdraw the opinions first."
            )


def split_series(user_id: str, scan_id: str) -> list[Scan]:
    """Make single images from a user's series of images; they replace it, in its order, and are
    queued.

    Raises:
        NotRearranged: it is not such a series, or changed meanwhile.
        StorageError: its file cannot be read, or the images cannot be stored.
    """
    scans = _own(user_id, [scan_id])
    if not scans or not may_be_split(scans[0]):
        raise NotRearranged("Only series of PNG or JPEG images can be split.")
    _require_no_opinions(scans)
    [series] = scans
    require_space(2 * series.size)
    db.session.commit()  # No transaction is open while files are read and stored.
    pictures: list[Scan] = []
    with disk_has_room(), TemporaryDirectory(dir=incoming_folder()) as folder:
        packed = Path(folder) / "series"
        storage.fetch(series.original_key, packed)
        try:
            with zipfile.ZipFile(packed) as archive:
                for place, name in enumerate(archive.namelist(), start=1):
                    picture = _one_of(series, place)
                    pictures.append(picture)
                    content = archive.read(name)
                    picture.size = len(content)
                    storage.put(picture.original_key, content)
        except BaseException:
            for picture in pictures:
                storage.discard(picture.original_key)
            raise
    _replace([series], pictures, Act.SCAN_SPLIT)
    return pictures


def _own(user_id: str, scan_ids: Sequence[str]) -> list[Scan]:
    """Return the scans with these ids that belong to the user, in this order."""
    mine = select(Scan).where(Scan.user_id == user_id, Scan.id.in_(scan_ids))
    by_id = {scan.id: scan for scan in db.session.scalars(mine)}
    return [by_id[each] for each in dict.fromkeys(scan_ids) if each in by_id]


def _notes(scans: Sequence[Scan]) -> list[str]:
    """Return the notes on a joined series: the results of its images, and their notes."""
    answers = Counter(scan.verdict_state for scan in scans if scan.verdict_state)
    results = ", ".join(f"{state} ({count})" for state, count in answers.items())
    joined = f"Joined from {len(scans)} images."
    if results:
        joined += f" Their results before: {results}."
    return list(dict.fromkeys([joined, *(note for scan in scans for note in scan.notes or [])]))


def _fetched(scan: Scan, place: int, folder: Path) -> Taken:
    """Return the file of an image, at its position in a series."""
    path = folder / str(place)
    storage.fetch(scan.original_key, path)
    measure = copy_png if scan.kind == "png" else copy_jpeg
    try:
        with path.open("rb") as content, _Nowhere() as nowhere:
            width, height = measure(content, nowhere)
    except DamagedFile as err:
        raise NotRearranged("The file of one of these images is damaged.") from err
    return Taken(path, scan.kind, place, f"{place}", pixels=width * height, size=(width, height))


class _Nowhere(io.BytesIO):
    """A file object that discards everything."""

    def write(self, content: Any) -> int:
        """Discard bytes."""
        return len(content)


def _one_of(series: Scan, place: int) -> Scan:
    """Return the row of an image of a series."""
    scan_id, label = new_id(), f"No. {place}"
    title = f"{series.title[: MAX_TITLE - len(label) - 3]} · {label}" if series.title else label
    note = f"Split from a series of {series.slice_count} images."
    if series.verdict_state:
        note += f" Its result before: {series.verdict_state}."
    return Scan(
        id=scan_id,
        user_id=series.user_id,
        study_id=series.study_id,
        title=title,
        kind=series.kind,
        stat=series.stat,
        uncut=series.uncut,
        notes=[note, *(series.notes or [])],
        original_key=f"originals/{scan_id}{SUFFIXES[series.kind]}",
        created_at=series.created_at,
    )


def _replace(before: Sequence[Scan], after: Sequence[Scan], act: Act) -> None:
    """Replace rows by others, whose files are already stored, in one transaction, and delete the
    files of the replaced rows; if that fails, delete the new files.
    """
    for scan in before:
        db.session.expunge(scan)  # Its loaded attributes survive a rollback.
    try:
        keys = retry_deadlocks(partial(_replace_rows, before, after, act, after[0].stat))
    except BaseException:
        db.session.rollback()
        for scan in after:
            storage.discard(scan.original_key)
        raise
    discard(keys, FILES_S)
    nudge(PREDICT_SCANS)


def _replace_rows(
    before: Sequence[Scan], after: Sequence[Scan], act: Act, wants_stat: bool
) -> list[str]:
    """Replace rows by others, commit, and return the storage keys of the replaced rows' files."""
    user_id = before[0].user_id
    lock_person(user_id)
    _lock(before)
    _require_no_opinions(before)  # Again, because files were read and stored meanwhile.
    for scan in after:
        scan.stat = False
    db.session.add_all(after)
    db.session.flush()
    lead_on({scan.id for scan in before}, after[0].id)
    keys = _removed(before)
    # Checked at a point where the replaced scans no longer count.
    room = urgent_room(user_id) if wants_stat else 0
    for place, scan in enumerate(after):
        scan.stat = wants_stat and place < room
        if wants_stat and not scan.stat and IN_ITS_TURN not in (scan.notes or []):
            scan.notes = [*(scan.notes or []), IN_ITS_TURN]
    studies = {scan.study_id for scan in before}
    for scan in after:
        if scan.study_id not in studies:
            enter_successor(studies, scan.id, scan.study_id)
    for scan in (*before, *after):
        record(act, scan.id, detail=f"{len(before)} into {len(after)}")
    db.session.commit()
    return keys


def _lock(scans: Sequence[Scan]) -> None:
    """Lock these rows, so that nobody shares them or gives an opinion before the commit."""
    ids = [scan.id for scan in scans]
    db.session.execute(select(Scan.id).where(Scan.id.in_(ids)).with_for_update())


def _removed(scans: Sequence[Scan]) -> list[str]:
    """Delete these rows, and return the keys of their files.

    Raises:
        NotRearranged: one of them has changed.
    """
    which = Scan.id.in_([scan.id for scan in scans])
    keys = files_of(which)
    removed = delete(Scan).where(which, Scan.original_removed_at.is_(None)).returning(Scan.id)
    deleted = db.session.scalars(removed, execution_options={"synchronize_session": False}).all()
    if len(deleted) != len(scans):
        raise NotRearranged("One of these scans has been deleted or changed.")
    return keys
