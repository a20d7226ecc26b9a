"""Opinions on scans: giving, changing and withdrawing them, and their consensus."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import contains_eager, joinedload

from ml.catalogue import BLEEDING_TYPES
from webapp.audit import record
from webapp.extensions import db, utc_now
from webapp.forms import MAX_COMMENT, OpinionForm, ShareForm, lines_problem
from webapp.models import Act, Finding, Opinion, Scan, User
from webapp.models.accounts import lock_person
from webapp.review.queue import sampling_for
from webapp.review.sharing import shares_of, visible_to

GONE = "Your opinion was not saved because this scan was deleted or is no longer shared with you."
REGION = ("x", "y", "rx", "ry")
DIGITS = 4


class OpinionRefused(ValueError):
    """An opinion is invalid; the message is a sentence for its author."""


class ScanGone(LookupError):
    """The scan does not exist, or is not visible to this user."""


@dataclass(frozen=True)
class NewOpinion:
    """An opinion on a scan, or on the slice `slice_index` (from 0).

    Attributes:
        types: names in `ml.catalogue.BLEEDING_TYPES`.
        region: an ellipse on the slice, as in `Opinion.region`.
    """

    finding: Finding
    slice_index: int | None = None
    types: tuple[str, ...] = ()
    comment: str = ""
    region: dict[str, float] | None = None

    def require_sound(self, slice_count: int) -> None:
        """Check an opinion on a scan with `slice_count` slices.

        Raises:
            OpinionRefused: a part is missing, unknown or contradicts another part.
        """
        if self.slice_index is not None and not 0 <= self.slice_index < slice_count:
            raise OpinionRefused(
                f"There is no such slice. The slices are numbered from 1 to {slice_count}."
            )
        if unknown := sorted(set(self.types) - set(BLEEDING_TYPES)):
            raise OpinionRefused(f"“{unknown[0][:40]}” is not a type of hemorrhage.")
        if self.types and self.finding != Finding.PRESENT:
            raise OpinionRefused(
                "Types apply only if hemorrhage is present. Please choose “present” or no type."
            )
        if problem := lines_problem(self.comment, MAX_COMMENT):
            raise OpinionRefused(problem)
        if self.region is None:
            return
        if self.slice_index is None and slice_count > 1:
            raise OpinionRefused("A mark applies to one slice. Please choose the slice.")
        center_in = 0 <= self.region["x"] <= 1 and 0 <= self.region["y"] <= 1
        if not center_in or not all(0 < self.region[name] <= 1 for name in ("rx", "ry")):
            raise OpinionRefused("The mark is outside the image.")


@dataclass(frozen=True)
class Consensus:
    """The numbers of people in whose opinion the whole scan shows hemorrhage, and in whose opinion
    it does not.
    """

    present: int
    absent: int

    @property
    def finding(self) -> Finding | None:
        """The majority's finding, which confirms the scan; None if nobody gave a decisive opinion
        or the votes are tied.
        """
        if self.present == self.absent:
            return None
        return Finding.PRESENT if self.present > self.absent else Finding.ABSENT

    @property
    def voters(self) -> int:
        """The number of people with a decisive opinion."""
        return self.present + self.absent

    @property
    def is_disputed(self) -> bool:
        """True if people disagree."""
        return self.present > 0 and self.absent > 0


def consensus_of(opinions: Iterable[Opinion]) -> Consensus:
    """Return the consensus on the whole scan in these opinions on one scan."""
    of_scan = [opinion.finding for opinion in opinions if opinion.slice_index is None]
    return Consensus(of_scan.count(Finding.PRESENT), of_scan.count(Finding.ABSENT))


def opinions_of(scan: Scan) -> list[Opinion]:
    """Return all opinions on a scan with their authors: on the whole scan first, then slice by
    slice, in the order in which they were first given.
    """
    return opinions_on([scan.id])[scan.id]


def opinions_on(scan_ids: Collection[str]) -> dict[str, list[Opinion]]:
    """Return the opinions on each of these scans, as `opinions_of` does."""
    opinions = (
        select(Opinion)
        .where(Opinion.scan_id.in_(scan_ids))
        .options(joinedload(Opinion.author), joinedload(Opinion.scan).load_only(Scan.verdict_state))
        .order_by(
            Opinion.slice_index.is_not(None), Opinion.slice_index, Opinion.created_at, Opinion.id
        )
    )
    on: dict[str, list[Opinion]] = {scan_id: [] for scan_id in scan_ids}
    for opinion in db.session.scalars(opinions):
        on[opinion.scan_id].append(opinion)
    return on


def reviewable_slices(scan: Scan) -> int:
    """Return the number of slices on which opinions can be given: those that were analyzed."""
    return len(scan.prediction.slices) if scan.prediction else 0


def give(
    scan_id: str,
    author_id: str,
    new: NewOpinion,
    *,
    from_queue: bool = False,
    only_finding: bool = False,
) -> Opinion:
    """Give an opinion, or change the author's earlier one on the same scan or slice; the caller
    commits.

    Args:
        from_queue: the author came from the review queue; recorded only if the queue offers this
            scan to the author.
        only_finding: an earlier opinion keeps its comment and mark, and its types if hemorrhage is
            still present.

    Raises:
        ScanGone: the author cannot see the scan.
        OpinionRefused: the opinion is invalid.
    """
    scan = _locked_scan(scan_id, author_id)
    if scan.prediction is None:
        raise OpinionRefused("You can give an opinion once the scan has a result.")
    count = reviewable_slices(scan)
    new.require_sound(count)
    index = None if count == 1 else new.slice_index  # a single slice counts as the whole scan
    opinion = db.session.scalar(
        select(Opinion).where(
            Opinion.scan_id == scan_id,
            Opinion.author_id == author_id,
            Opinion.slice_index.is_(None) if index is None else Opinion.slice_index == index,
        )
    )
    region = new.region and {name: round(new.region[name], DIGITS) for name in REGION}
    columns: dict[str, Any] = {
        "finding": new.finding,
        "types": sorted(set(new.types)),
        "comment": new.comment,
        "region": region,
    }
    if opinion is None:
        opinion = Opinion(scan_id=scan_id, author_id=author_id, slice_index=index, **columns)
        _create(opinion, scan, from_queue)
    else:
        if only_finding:
            types = opinion.types if new.finding == Finding.PRESENT else []
            columns = {"finding": new.finding, "types": types}
        _update(opinion, columns)
    # Also for an opinion that does not change: the scan's result may have changed since.
    _record_result(opinion, scan)
    return opinion


def _create(opinion: Opinion, scan: Scan, from_queue: bool) -> None:
    opinion.author = db.session.get_one(User, opinion.author_id)
    if from_queue and opinion.slice_index is None:
        opinion.sampling = sampling_for(opinion.author, scan)
    db.session.add(opinion)
    place = _place(opinion.slice_index)
    record(Act.OPINION_GIVEN, scan.id, detail=f"{place}: {opinion.finding}")


def _update(opinion: Opinion, columns: Mapping[str, Any]) -> None:
    """Set these columns, and record what changes."""
    changed = [name for name, value in columns.items() if getattr(opinion, name) != value]
    if not changed:
        return
    detail = f"{_place(opinion.slice_index)}: {opinion.finding} → {columns['finding']}"
    if others := ", ".join(name for name in changed if name != "finding"):
        detail += f"; {others}"
    for name in changed:
        setattr(opinion, name, columns[name])
    opinion.updated_at = utc_now()
    record(Act.OPINION_CHANGED, opinion.scan_id, detail=detail)


def withdraw(scan_id: str, opinion_id: str, author_id: str) -> bool:
    """Withdraw the author's own opinion; False if there is none. The caller commits."""
    opinion = db.session.scalar(
        select(Opinion)
        .where(Opinion.id == opinion_id)
        .where(Opinion.scan_id == scan_id, Opinion.author_id == author_id)
        .with_for_update()
    )
    if opinion is None:
        return False
    db.session.delete(opinion)
    detail = f"{_place(opinion.slice_index)}: {opinion.finding}"
    record(Act.OPINION_WITHDRAWN, scan_id, detail=detail)
    return True


def panel(
    scan: Scan,
    reader_id: str,
    form: OpinionForm | None = None,
    share_form: ShareForm | None = None,
) -> dict[str, Any]:
    """Return the template context of the opinions panel as seen by `reader_id`.

    Args:
        form: an opinion that was rejected, to be corrected.
        share_form: a username that was rejected, likewise.
    """
    opinions = opinions_of(scan)
    by_reader = [each for each in opinions if each.author_id == reader_id]
    is_owner = scan.user_id == reader_id
    return {
        "opinions": opinions,
        "consensus": consensus_of(opinions),
        "own_opinions": [
            {
                "slice": each.slice_index,
                "finding": each.finding,
                "types": each.types,
                "comment": each.comment,
                "region": each.region,
            }
            for each in by_reader
        ],
        "marks": [
            {"slice": each.slice_index or 0, "region": each.region, "by": each.author.username}
            for each in opinions
            if each.region
        ],
        "own_finding": next((each.finding for each in by_reader if each.slice_index is None), None),
        "opinion_form": form or OpinionForm(formdata=None),
        "reviewable_slices": reviewable_slices(scan),
        "is_owner": is_owner,
        "shares": shares_of(scan.id) if is_owner else [],
        "share_form": (share_form or ShareForm(formdata=None)) if is_owner else None,
    }


def _locked_scan(scan_id: str, reader_id: str) -> Scan:
    """Return a scan that is visible to this user, with its prediction. Both are locked until the
    caller commits, so that neither is deleted and no other opinion on the scan is written
    meanwhile.
    """
    if lock_person(reader_id) is None:
        raise ScanGone
    scan = db.session.scalar(
        select(Scan)
        .where(Scan.id == scan_id, visible_to(reader_id))
        .outerjoin(Scan.prediction)
        .options(contains_eager(Scan.prediction))
        .execution_options(populate_existing=True)
        .with_for_update(of=Scan, key_share=True)
    )
    if scan is None:
        raise ScanGone
    return scan


def _record_result(opinion: Opinion, scan: Scan) -> None:
    """Record the result that the author sees."""
    prediction = scan.prediction
    if prediction is None:
        return
    opinion.model_version_id = prediction.model_version_id
    if opinion.slice_index is None:
        opinion.model_probability = prediction.probability
        # One cannot agree with an inconclusive prediction.
        opinion.model_positive = None if prediction.uncertain else prediction.positive
    else:
        opinion.model_probability = prediction.slices[opinion.slice_index]


def _place(slice_index: int | None) -> str:
    return "scan" if slice_index is None else f"slice {slice_index + 1}"
