"""Closes complete studies: their files become scans as an upload's do, or are refused, which
administrators see.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pydicom
from flask import Flask, g
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.datastructures import FileStorage

from listener.earlier import Part, heirs_of, parts_of, series_of, series_of_scan
from listener.scp import account_of
from listener.spool import Spool, Study
from webapp.deletion import discard
from webapp.extensions import db, utc_now
from webapp.forms import MAX_TITLE
from webapp.intake import Choices, NewUids, QuotaReached, UploadRejected, accept_upload
from webapp.intake.completing import Changed, NothingNew, take_place, uids_of
from webapp.intake.series import SeriesFiles
from webapp.intake.spool import incoming_folder
from webapp.models import CAME_EARLIER, CUT_OFF, ReceivedScan, ReceivedStudy, Scan, new_id
from webapp.routing import Link, received_scans, seal
from webapp.storage import StorageError

log = logging.getLogger(__name__)

LOOK_S = 0.5
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 300.0
MOST_FAILURES = 5
"""A study is given up after this many failures that are due neither to storage nor to the
database.
"""
SWEEP_S = 600
GIVEN_UP = "The study could not be stored because of an internal error; see the log."
WAITS_FOR_ROOM = (
    "The study is waiting because its account has reached its storage limit. Delete some of its"
    " scans or raise QUOTA_MB."
)
NO_ACCOUNT = "The account “{}” does not exist or is disabled."
OF_PATIENT_AND_STUDY = (
    "SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "StudyDescription", "PatientName",
    "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "StudyInstanceUID", "StudyID",
)  # fmt: skip
"""The tags by which an archive files an object: results go back with the archive's own values."""


@dataclass(frozen=True)
class PutOff:
    """A study that could not be made into scans: until when it waits, how long the last wait was,
    and how many of its failures were due to neither storage nor the database.
    """

    until: float = 0.0
    wait_s: float = 0.0
    failures: int = 0


class Closer:
    """Closes studies in a thread, one after the other.

    Args:
        busy: the keys of the studies of open associations.
    """

    def __init__(self, app: Flask, spool: Spool, busy: Callable[[], set[str]]) -> None:
        self._app, self._spool, self._busy = app, spool, busy
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="closes studies", daemon=True)
        self._put_off: dict[str, PutOff] = {}
        self._swept_at = time.monotonic()

    def start(self) -> None:
        """Begin to look for studies that are complete."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the current study and stop."""
        self._over.set()
        self._thread.join()

    def close_due(self) -> None:
        """Close all studies that are complete now; one that fails waits longer each time."""
        for key in self._spool.due(self._app.config["DICOM_QUIET_S"], self._busy()):
            put_off = self._put_off.get(key, PutOff())
            if time.monotonic() < put_off.until:
                continue
            failures = put_off.failures
            study = self._spool.close(key)
            try:
                with self._app.app_context():
                    self._close(study, failures)
            except (StorageError, SQLAlchemyError, OSError, QuotaReached, Changed) as err:
                self._reopen(study, err, failures)
            except Exception as err:  # noqa: BLE001 - one study must not hold up the others.
                self._reopen(study, err, failures + 1)
            else:
                self._put_off.pop(key, None)

    def _close(self, study: Study, failures: int) -> None:
        if failures >= MOST_FAILURES:
            _note(study, account_of(study.about.account), 0, [GIVEN_UP])
            db.session.commit()
        else:
            take_in(study)
        self._spool.remove(study)

    def _reopen(self, study: Study, err: Exception, failures: int) -> None:
        self._spool.reopen(study)
        waited_s = self._put_off[study.key].wait_s if study.key in self._put_off else 0.0
        wait_s = min(max(FIRST_RETRY_S, 2 * waited_s), LAST_RETRY_S)
        self._put_off[study.key] = PutOff(time.monotonic() + wait_s, wait_s, failures)
        log.warning(
            "a study of %s could not be accepted and will be retried: %s",
            ", ".join(study.about.senders),
            type(err).__name__,
        )
        if isinstance(err, QuotaReached) and not waited_s:
            with self._app.app_context():
                _note(study, account_of(study.about.account), 0, [WAITS_FOR_ROOM])
                db.session.commit()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self.close_due()
                if time.monotonic() - self._swept_at > SWEEP_S:
                    self._swept_at = time.monotonic()
                    self._spool.sweep()
            except Exception as err:  # noqa: BLE001 - the next round retries, whatever failed.
                log.error("studies cannot be closed: %s", type(err).__name__)


def take_in(study: Study) -> list[str]:
    """Make scans of a study, except for series that already are scans; commit and return the
    ids.
    If part of a series already is a scan, the whole series becomes a new scan that replaces it.

    Raises:
        StorageError, SQLAlchemyError, QuotaReached, Changed: it has to be retried later.
    """
    about = study.about
    user_id = account_of(about.account)
    if user_id is None:
        _note(study, None, 0, [NO_ACCOUNT.format(about.account)])
        db.session.commit()
        return []
    whole = _Arrived(study, user_id, received_scans(study.key), new_id(), utc_now())
    by_series = [
        list(files) for _, files in groupby(study.files, lambda file: series_of(file.stem))
    ]
    fresh = [files for files in by_series if not whole.has({file.stem for file in files})]
    if not fresh:
        refused = _missing(study) if study.about.refused else []
        _note(study, user_id, 0, refused)
        db.session.commit()
        log.info("a study of %s was sent again, without changes", ", ".join(about.senders))
        return []
    try:
        return whole.take_in([file for files in fresh for file in files])
    except QuotaReached:
        raise
    except UploadRejected as err:
        db.session.rollback()
        if len(fresh) == 1:
            return whole.refuse([str(err)])
    scan_ids, sentences = [], []
    for files in fresh:  # Separately, so that a refused series does not make the others fail.
        try:
            scan_ids += whole.take_in(files, is_alone=False)
        except QuotaReached:
            raise
        except UploadRejected as err:
            db.session.rollback()
            sentences.append(str(err))
    _note(study, user_id, len(scan_ids), [*sentences, *_missing(study)])
    db.session.commit()
    return scan_ids


class _Arrived:
    """A study that arrived, whole or in part; all scans made of it are one study.

    Args:
        scans: scans made of the study before (`webapp.routing.received_scans`).
    """

    def __init__(
        self, study: Study, user_id: str, scans: Sequence[Row[Any]], study_id: str, at: datetime
    ) -> None:
        self._study, self._user_id, self._scans = study, user_id, scans
        self._study_id, self._at = study_id, at
        self._known = {scan.scan_id for scan in scans}
        # Instances whose scans were made at the same time.
        self._made: dict[str, set[str]] = {}
        for scan in scans:
            self._made.setdefault(scan.study_id, set()).update(scan.instances)

    def has(self, instances: Set[str]) -> bool:
        """Return whether all of these instances of a series became scans at the same time; scans
        made at different times each hold part of the series.
        """
        return any(instances <= made for made in self._made.values())

    def refuse(self, sentences: Sequence[str]) -> list[str]:
        """Record that no scan was made."""
        _note(self._study, self._user_id, 0, [*sentences, *_missing(self._study)])
        db.session.commit()
        return []

    def take_in(self, files: Sequence[Path], *, is_alone: bool = True) -> list[str]:
        """Make scans of these files and commit; return their ids.

        Args:
            is_alone: no other scan is made of the study.

        Raises:
            UploadRejected: the files are refused.
            StorageError: they cannot be stored now, or stored slices of their series cannot be
                read.
            Changed: the stored slices of their series changed meanwhile, or another listener made
                scans of the study.
        """
        answers, uids = self._study.about.answers, uids_of(self._user_id, "DICOM")
        with TemporaryDirectory(dir=incoming_folder()) as folder:
            parts = parts_of(self._scans, files, answers, uids, Path(folder))
            try:
                return self._submit(files, parts, uids, is_alone=is_alone)
            except QuotaReached:
                raise
            except (NothingNew, UploadRejected):
                if not parts:
                    raise
        db.session.rollback()
        return self._submit(files, [], uids, is_alone=is_alone)

    def _submit(
        self, files: Sequence[Path], parts: Sequence[Part], uids: NewUids, *, is_alone: bool
    ) -> list[str]:
        """Submit these files with the stored copies of the scans that the new ones replace."""
        about, gone = self._study.about, list[str]()
        answers = dict(about.answers)
        for part in parts:
            answers = {**part.answers, **answers}
        copies = [(part.scan_id, path) for part in parts for path in part.copies]
        names = [*(file.stem for file in files), *(scan_id for scan_id, _ in copies)]
        before = {part.scan_id for part in parts}
        others = {series_of_scan(scan) for scan in self._scans if scan.scan_id not in before}

        def remember(scans: Sequence[Scan], series: Sequence[SeriesFiles]) -> None:
            held = [[names[file.number - 1] for file in scan_files.files] for scan_files in series]
            heirs = heirs_of(parts, held, self.has)
            left_out = set(names).difference(*held)
            link = self._link(files, parts, uids) if answers else None
            # Set before the insertion, which counts the owner's studies.
            for scan in scans:
                scan.study_id, scan.created_at, scan.queued_at = self._study_id, self._at, self._at
            db.session.flush()
            # The owner's row is locked, so no other listener makes scans of this study now.
            if not self._known.issuperset(row.scan_id for row in received_scans(self._study.key)):
                raise Changed
            for place, (scan, instances_held) in enumerate(zip(scans, held, strict=True)):
                notes = _missing(self._study)
                if others.intersection(map(series_of, instances_held)):
                    notes = [*notes, CAME_EARLIER]
                scan.notes = [*(scan.notes or []), *notes]
                if replaced_parts := heirs.get(place, []):
                    gone.extend(take_place(scan, [part.scan_id for part in replaced_parts]))
                instances = [each for each in instances_held if each not in before]
                instances += [each for part in replaced_parts for each in part.instances]
                if not place:
                    instances += sorted(left_out - before)
                instances = list(dict.fromkeys(instances))
                received = {"instances": instances, "answers": answers or None, "sealed_link": link}
                db.session.add(
                    ReceivedScan(scan_id=scan.id, study_hash=self._study.key, **received)
                )
            if is_alone:
                _note(self._study, self._user_id, len(scans), _missing(self._study))

        g.dicom_sender = f"DICOM {about.senders[0]}"
        with ExitStack() as opened:
            paths = [*files, *(path for _, path in copies)]
            accepted = accept_upload(
                self._user_id,
                [FileStorage(opened.enter_context(path.open("rb")), "") for path in paths],
                ", ".join(about.senders)[:MAX_TITLE],
                Choices(stat=about.stat or any(part.stat for part in parts), leave_out=True),
                uids=uids,
                before_commit=remember,
            )
        discard(gone)
        made = [scan.id for scan in accepted.scans]
        self._known.update(made)
        return made

    def _link(self, files: Sequence[Path], parts: Sequence[Part], uids: NewUids) -> str:
        originals = dict(uids.originals)
        for part in parts:
            originals |= part.originals
        return seal(Link(originals, patient_of(files[0])))


def patient_of(path: Path) -> dict[str, Any]:
    """Return a file's patient and study attributes as DICOM JSON, without those that cannot be
    read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every odd value, and may quote it.
        header = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=list(OF_PATIENT_AND_STUDY)
        )
        tags: dict[str, Any] = header.to_json_dict(suppress_invalid_tags=True)
    return tags


def _missing(study: Study) -> list[str]:
    """Return sentences about what may be missing: instances that were refused on arrival, and an
    association that broke off.
    """
    refused = [
        f"Refused on arrival ({count}): {sentence}"
        for sentence, count in study.about.refused.items()
    ]
    return [*refused, CUT_OFF] if study.about.is_cut_off else refused


def _note(study: Study, user_id: str | None, scans: int, sentences: Sequence[str]) -> None:
    """Add a row about the outcome of a study; the caller commits."""
    sentence = " ".join(sentences) or None
    senders = ", ".join(study.about.senders)[:100]
    db.session.add(
        ReceivedStudy(
            sent_by=senders,
            user_id=user_id,
            files=len(study.files),
            scans=scans,
            sentence=sentence,
        )
    )
    log.log(
        logging.WARNING if sentence else logging.INFO,
        "a study of %s is closed: files=%d scans=%d%s",
        senders,
        len(study.files),
        scans,
        f"; {sentence}" if sentence else "",
    )
