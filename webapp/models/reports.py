"""Reports of a scan as files: asked for by its owner, made by a worker, kept for a day; those for
DICOMweb are asked for by the end of the analysis, and kept with the scan.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    ForeignKey,
    Index,
    String,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column, relationship

from webapp.extensions import database_now, db
from webapp.models.leased import JobStatus, Leased, new_id, queue_index
from webapp.models.scans import Heatmap, Prediction, Scan

MAX_OPEN = 20
"""Reports that one person may have waiting at once."""
KEEP_S = 24 * 3600
"""How long the file of a report is kept after it was made."""
WAITS_FOR_HEAT_MAP_S = 3600
"""How long a secondary capture waits for the heat map that it shows; drawing it ends the wait."""
NOT_OUTLINED = "No hemorrhage is outlined in this scan, so there is no segmentation."
NOT_LOCATED = (
    "The DICOM files do not say where each slice lies, so no segmentation can refer to them."
)


class ObjectFacts(NamedTuple):
    """What all DICOM objects of a kind have in common.

    Attributes:
        series_number: of the new series, beyond those of scanners.
    """

    sop_class_uid: str
    modality: str
    series_number: int
    series_description: str


class ReportKind(StrEnum):
    """What a report is: a page to print, or an object for a DICOM archive."""

    PDF = "pdf"
    STRUCTURED_REPORT = "sr"
    SECONDARY_CAPTURE = "sc"
    SEGMENTATION = "seg"

    @property
    def is_dicom(self) -> bool:
        """True of what has a place in a DICOM archive."""
        return self is not ReportKind.PDF

    @property
    def facts(self) -> ObjectFacts:
        """What its DICOM objects have in common.

        Raises:
            KeyError: it is not a DICOM object.
        """
        return FACTS[self]

    @property
    def suffix(self) -> str:
        """The ending of its file."""
        return ".dcm" if self.is_dicom else ".pdf"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The endings of all that is stored of it: besides its file, of a DICOM object what it says
        as DICOM JSON, and of one that is a picture the picture.
        """
        pictures = (".jpg", ".png") if self is ReportKind.SECONDARY_CAPTURE else ()
        return (self.suffix, *([".json", *pictures] if self.is_dicom else []))

    @property
    def media_type(self) -> str:
        """The content type of its file."""
        return "application/dicom" if self.is_dicom else "application/pdf"


FACTS = {
    ReportKind.STRUCTURED_REPORT: ObjectFacts(
        "1.2.840.10008.5.1.4.1.1.88.34", "SR", 9001, "Hemoscan: report"
    ),
    ReportKind.SECONDARY_CAPTURE: ObjectFacts(
        "1.2.840.10008.5.1.4.1.1.7", "OT", 9002, "Hemoscan: result"
    ),
    ReportKind.SEGMENTATION: ObjectFacts(
        "1.2.840.10008.5.1.4.1.1.66.4", "SEG", 9003, "Hemoscan: outline"
    ),
}


class Report(Leased, db.Model):
    """The newest report of one kind that was asked for of a scan; the queue of those who wait.

    Its file is `reports/<id>` with the suffix of its kind, and exists once it is done. Asking again
    makes a new row, since what it tells may have changed.

    Attributes:
        series_uid: the series that a DICOM object is in; set once it is made. Its own UID is
            `sop_instance_uid`.
    """

    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"))
    # Whose scan it is, once more for the index of the queue.
    user_id: Mapped[str] = mapped_column(String(32))
    kind: Mapped[ReportKind] = mapped_column(String(8))
    series_uid: Mapped[str | None] = mapped_column(String(64))
    scan: Mapped[Scan] = relationship()

    __table_args__ = (
        # The newest one of each kind.
        Index("ix_report_scan_id", "scan_id", "kind", unique=True),
        Index(None, "status", "queued_at"),
        queue_index("ix_report_queue"),
    )

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return whose scan it is of."""
        return cls.user_id  # type: ignore[return-value]

    @property
    def file_key(self) -> str:
        """The storage key of its file."""
        return self.file_keys[0]

    @property
    def file_keys(self) -> list[str]:
        """The storage keys of all that is stored of it, its file first."""
        return file_keys(self.id, ReportKind(self.kind))

    @property
    def sop_instance_uid(self) -> str:
        """The UID of a DICOM object, which tells the row (PS3.5 B.2)."""
        return uid_of(self.id)

    @property
    def file_name(self) -> str:
        """The name under which a browser saves it; it says nothing about the patient."""
        kind = ReportKind(self.kind)
        which = "" if kind is ReportKind.PDF else f"-{kind.value}"
        return f"hemoscan-{self.scan_id[:8]}{which}{kind.suffix}"


class ReportRefused(ValueError):
    """A report is not made; the text is a sentence for the person who asked."""


def file_keys(report_id: str, kind: ReportKind) -> list[str]:
    """Return the storage keys of all that is stored of a report, its file first."""
    return [f"reports/{report_id}{suffix}" for suffix in kind.suffixes]


def uid_of(row_id: str) -> str:
    """Return the UID that stands for a row by its id, 32 hexadecimal digits."""
    return f"2.25.{int(row_id, 16)}"


def report_kinds(scan: Scan) -> tuple[ReportKind, ...]:
    """Return the kinds of report that there are of a scan: none without a result, and DICOM objects
    only while the DICOM files that they refer to are stored; a segmentation needs an outline, and
    files that say where each slice lies.
    """
    if scan.prediction is None:
        return ()
    if scan.kind != "dicom" or scan.original_removed_at is not None:
        return (ReportKind.PDF,)
    if not _is_outlined(scan) or scan.prediction.can_be_segmented is False:
        return tuple(kind for kind in ReportKind if kind is not ReportKind.SEGMENTATION)
    return tuple(ReportKind)


def is_kept() -> ColumnElement[bool]:
    """Return the condition of reports that are kept with their scan."""
    of_such = select(Scan.id).where(Scan.id == Report.scan_id, Scan.dicom_results)
    return (Report.kind != ReportKind.PDF) & of_such.exists()


def queue_dicom_results(scan_ids: Collection[str], wanting_heat_maps: Collection[str]) -> None:
    """Queue DICOM objects of those of these scans, all with a new result, for which they are made
    unasked, in place of those of an earlier result; the caller commits. The files of these become
    orphans.

    Args:
        wanting_heat_maps: the scans whose heat maps are still to be drawn.
    """
    # Columns, since this session may hold the rows as they were.
    scans = db.session.execute(
        select(Scan.id, Scan.user_id, Scan.outline_key, Prediction.can_be_segmented)
        .join(Scan.prediction)
        .where(Scan.id.in_(scan_ids), Scan.dicom_results, Scan.kind == "dicom")
    ).all()
    if not scans:
        return
    ids = [scan.id for scan in scans]
    earlier = delete(Report).where(Report.scan_id.in_(ids), Report.kind != ReportKind.PDF)
    db.session.execute(earlier, execution_options={"synchronize_session": False})
    late = database_now(WAITS_FOR_HEAT_MAP_S)
    db.session.execute(
        insert(Report),
        [
            {"id": new_id(), "scan_id": scan.id, "user_id": scan.user_id, "kind": kind}
            for scan in scans
            for kind in ReportKind
            if kind.is_dicom
            and (
                kind is not ReportKind.SEGMENTATION
                or (scan.outline_key and scan.can_be_segmented is not False)
            )
        ],
    )
    waits = Report.scan_id.in_(set(ids) & set(wanting_heat_maps))
    captures = update(Report).where(waits, Report.kind == ReportKind.SECONDARY_CAPTURE)
    db.session.execute(
        captures.values(retry_at=late), execution_options={"synchronize_session": False}
    )


def capture_waits_no_longer(scan_id: str) -> None:
    """Have the secondary capture of a scan made whose heat map is drawn, or will not be; the caller
    commits.
    """
    still_drawn = (
        select(Heatmap.id)
        .join(Heatmap.prediction)
        .where(
            Prediction.scan_id == scan_id,
            Heatmap.status.in_((JobStatus.QUEUED, JobStatus.RUNNING)),
        )
    )
    capture = (Report.scan_id == scan_id) & (Report.kind == ReportKind.SECONDARY_CAPTURE)
    waits = capture & (Report.status == JobStatus.QUEUED) & ~still_drawn.exists()
    db.session.execute(
        update(Report).where(waits).values(retry_at=None),
        execution_options={"synchronize_session": False},
    )


def _is_outlined(scan: Scan) -> bool:
    return bool(scan.outline_key and scan.prediction and scan.prediction.outlined_slices)


def ask_for_report(scan: Scan, kind: ReportKind) -> tuple[Report, list[str]]:
    """Queue a report of a scan, unless the same one is waiting already; return it with the storage
    keys of the files that it replaces, for the caller to discard after the commit.

    Raises:
        ReportRefused: there is no such report of this scan, or its owner has `MAX_OPEN` reports
            waiting.
    """
    if kind not in report_kinds(scan):
        raise ReportRefused(_refusal(scan))
    # Two requests at once are one: the second waits here.
    db.session.execute(select(Scan.id).where(Scan.id == scan.id).with_for_update())
    known = db.session.scalar(select(Report).where(Report.scan_id == scan.id, Report.kind == kind))
    if known is not None and not known.status.is_final:
        return known, []
    waiting = select(func.count()).where(
        Report.user_id == scan.user_id,
        Report.status.in_((JobStatus.QUEUED, JobStatus.RUNNING)),
        ~is_kept(),
    )
    if (db.session.scalar(waiting) or 0) >= MAX_OPEN:
        raise ReportRefused(
            f"{MAX_OPEN} of your reports are already waiting. Please try again later."
        )
    replaced: list[str] = []
    if known is not None:
        replaced = known.file_keys
        db.session.delete(known)
        db.session.flush()
    report = Report(scan_id=scan.id, user_id=scan.user_id, kind=kind, queued_at=database_now())
    db.session.add(report)
    db.session.flush()
    return report, replaced


def _refusal(scan: Scan) -> str:
    if scan.prediction is None:
        return "A report can be created once the scan has a result."
    if scan.kind != "dicom":
        return "DICOM objects can be created only for scans that were submitted as DICOM."
    if scan.original_removed_at is None:
        return NOT_LOCATED if _is_outlined(scan) else NOT_OUTLINED
    return "The DICOM files of this scan are no longer stored, so no object can refer to them."
