"""Reports of a scan as files: asked for by its owner, made by a worker, kept for a day."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import ForeignKey, Index, String, func, select
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column, relationship

from webapp.extensions import database_now, db
from webapp.models.leased import JobStatus, Leased, queue_index
from webapp.models.scans import Scan

MAX_OPEN = 20
"""Reports that one person may have waiting at once."""
KEPT_S = 24 * 3600
"""How long the file of a report is kept after it was made."""


class ReportKind(StrEnum):
    """What a report is: a page to print, or an object for a DICOM archive."""

    PDF = "pdf"
    STRUCTURED_REPORT = "sr"
    SECONDARY_CAPTURE = "sc"
    SEGMENTATION = "seg"

    @property
    def suffix(self) -> str:
        """The ending of its file."""
        return ".pdf" if self is ReportKind.PDF else ".dcm"

    @property
    def media_type(self) -> str:
        """The content type of its file."""
        return "application/pdf" if self is ReportKind.PDF else "application/dicom"


class Report(Leased, db.Model):
    """The newest report of one kind that was asked for of a scan; the queue of those who wait.

    Its file is `reports/<id>` with the suffix of its kind, and exists once it is done. Asking again
    makes a new row, since what it tells may have changed.
    """

    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"))
    # Whose scan it is, once more for the index of the queue.
    user_id: Mapped[str] = mapped_column(String(32))
    kind: Mapped[ReportKind] = mapped_column(String(8))
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
        return file_key(self.id, ReportKind(self.kind))

    @property
    def file_name(self) -> str:
        """The name under which a browser saves it; it says nothing about the patient."""
        kind = ReportKind(self.kind)
        return f"hemoscan-{self.scan_id[:8]}-{kind.value}{kind.suffix}"


class ReportRefused(ValueError):
    """A report is not made; the text is a sentence for the person who asked."""


def file_key(report_id: str, kind: ReportKind) -> str:
    """Return the storage key of the file of a report."""
    return f"reports/{report_id}{kind.suffix}"


def report_kinds(scan: Scan) -> tuple[ReportKind, ...]:
    """Return the kinds of report that there are of a scan: none without a result, and DICOM objects
    only while the DICOM files that they refer to are stored; a segmentation needs an outline.
    """
    if scan.prediction is None:
        return ()
    if scan.kind != "dicom" or scan.original_removed_at is not None:
        return (ReportKind.PDF,)
    if not _is_outlined(scan):
        return tuple(kind for kind in ReportKind if kind is not ReportKind.SEGMENTATION)
    return tuple(ReportKind)


def _is_outlined(scan: Scan) -> bool:
    return bool(scan.outline_key and scan.prediction and scan.prediction.outlined_slices)


def ask_for_report(scan: Scan, kind: ReportKind) -> tuple[Report, str | None]:
    """Queue a report of a scan, unless the same one is waiting already; return it with the storage
    key of the file that it replaces, if there is one, for the caller to discard after the commit.

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
        return known, None
    waiting = select(func.count()).where(
        Report.user_id == scan.user_id, Report.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
    )
    if (db.session.scalar(waiting) or 0) >= MAX_OPEN:
        raise ReportRefused(f"{MAX_OPEN} of your reports are waiting already; try again later.")
    replaced = None
    if known is not None:
        replaced = known.file_key
        db.session.delete(known)
        db.session.flush()
    report = Report(scan_id=scan.id, user_id=scan.user_id, kind=kind, queued_at=database_now())
    db.session.add(report)
    db.session.flush()
    return report, replaced


def _refusal(scan: Scan) -> str:
    if scan.prediction is None:
        return "There is no report before there is a result."
    if scan.kind != "dicom":
        return "DICOM objects can be made of scans that were submitted as DICOM only."
    if scan.original_removed_at is None:
        return "No hemorrhage is outlined in this scan, so there is no segmentation."
    return "The DICOM files of this scan are no longer stored, so no object can refer to them."
