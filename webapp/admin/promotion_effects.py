"""The effect of a promotion: the results of the scans analyzed while it was in force, compared with
those that the previous version would have given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, joinedload

from ml.verdict import State, inconclusive_band, state_of
from webapp.admin.comparisons import Compared, compared_by_patient, results_between
from webapp.admin.operating_points import Described, described
from webapp.extensions import db
from webapp.models import (
    EarlierAnswer,
    JobStatus,
    Prediction,
    Promotion,
    Scan,
    Shadow,
    ShadowAnswer,
    ShadowRefused,
    promotion_after,
    promotion_before,
    start_past_shadow,
)
from webapp.models.shadows import MOST_WAITING

MOST_SCANS = MOST_WAITING
"""Maximum number of scans that are compared; the newest are chosen."""
NOTHING_BEFORE = "No version was live before this promotion, so there is nothing to compare with."
SAME_VERSION = "This promotion changed only the operating point, so nothing needs to be computed."


@dataclass(frozen=True)
class LiveResult:
    """A live result, with the columns that a shadow needs."""

    scan_id: str
    at: datetime
    probability: float
    threshold: float
    positive: bool
    uncertain: bool
    of_series: bool

    @property
    def state(self) -> State:
        """Suspected, inconclusive or not found."""
        return state_of(positive=self.positive, uncertain=self.uncertain)


@dataclass(frozen=True)
class Beside:
    """A live result, and the result without the promotion."""

    result: LiveResult
    probability: float
    state: State


@dataclass(frozen=True)
class Effect:
    """What a promotion changed.

    Attributes:
        before: the previous promotion; None for the first of its kind.
        until: when it ended; None while it is in force.
        results: the newest results of that period, newest first.
        is_cut: whether there are more than `MOST_SCANS`.
        beside: the results for which the previous version's prediction is known.
        running: the shadow that is computing more of them.
        compared: this version minus the previous one on labeled images.
    """

    promotion: Promotion
    before: Promotion | None
    until: datetime | None
    results: Sequence[LiveResult]
    is_cut: bool
    beside: Sequence[Beside]
    running: Shadow | None
    compared: Sequence[Compared]

    @property
    def is_point_only(self) -> bool:
        """Whether it only changed the operating point of the live version."""
        return self.before is not None and self.before.version_id == self.promotion.version_id

    @property
    def missing(self) -> int:
        """The number of these scans without a prediction of the previous version."""
        return len(self.results) - len(self.beside)

    @cached_property
    def changed(self) -> list[Beside]:
        """The results that would have had a different state."""
        return [pair for pair in self.beside if pair.state != pair.result.state]

    @property
    def suspected_with_only(self) -> int:
        """The number of scans suspected with the promotion only."""
        return sum(pair.result.state == "suspected" for pair in self.changed)

    @property
    def suspected_without_only(self) -> int:
        """The number of scans suspected without the promotion only."""
        return sum(pair.state == "suspected" for pair in self.changed)


def effect_of(promotion: Promotion) -> Effect:
    """Return what is known of the effect of a promotion."""
    before, after = promotion_before(promotion), promotion_after(promotion)
    until = after.at if after else None
    results = _live_results_between(promotion, until)
    shown = results[:MOST_SCANS]
    return Effect(
        promotion,
        before,
        until,
        shown,
        len(results) > MOST_SCANS,
        list(_beside(shown, promotion, before)) if before else [],
        _running(promotion),
        _compared(promotion, before),
    )


def find_out(promotion: Promotion, by_id: str | None) -> Shadow:
    """Let the previous version analyze, in a shadow, the scans from the period of a promotion that
    it has not analyzed; the caller commits.

    Raises:
        ShadowRefused: there is no previous version, there is nothing to analyze, or another version
            is in shadow.
    """
    effect = effect_of(promotion)
    if effect.before is None:
        raise ShadowRefused(NOTHING_BEFORE)
    if effect.is_point_only:
        raise ShadowRefused(SAME_VERSION)
    known = {pair.result.scan_id for pair in effect.beside}
    unanswered = {
        result.scan_id: result for result in effect.results if result.scan_id not in known
    }
    stored = select(Scan.id).where(Scan.id.in_(unanswered), Scan.original_removed_at.is_(None))
    answers = [
        {
            "scan_id": result.scan_id,
            "probability": result.probability,
            "threshold": result.threshold,
            "positive": result.positive,
            "uncertain": result.uncertain,
        }
        for result in map(unanswered.__getitem__, db.session.scalars(stored))
    ]
    return start_past_shadow(effect.before.version, promotion, answers, by_id)


def _live_results_between(promotion: Promotion, until: datetime | None) -> list[LiveResult]:
    """Return the results of the promoted version while the promotion was in force, one for each
    scan, newest first, and at most one more than `MOST_SCANS`.
    """
    newest_of: dict[str, LiveResult] = {}
    for table, time in (
        (Prediction, Prediction.created_at),
        (EarlierAnswer, EarlierAnswer.answered_at),
    ):
        rows = (
            _answers(table, time)
            .where(table.model_version_id == promotion.version_id, time >= promotion.at)
            .order_by(time.desc())
            .limit(MOST_SCANS + 1)
        )
        for row in db.session.execute(rows if until is None else rows.where(time < until)):
            result = _live_result(row)
            if result.scan_id not in newest_of or newest_of[result.scan_id].at < result.at:
                newest_of[result.scan_id] = result
    newest = sorted(
        newest_of.values(), key=lambda result: (result.at, result.scan_id), reverse=True
    )
    return newest[: MOST_SCANS + 1]


def _answers(
    table: type[Prediction] | type[EarlierAnswer], time: InstrumentedAttribute[datetime]
) -> Any:
    return select(
        table.scan_id,
        time.label("at"),
        table.probability,
        table.threshold,
        table.positive,
        table.uncertain,
        table.slices,
        Scan.slice_count,
    ).join(Scan, Scan.id == table.scan_id)


def _live_result(row: Any) -> LiveResult:
    slices = len(row.slices) if row.slices else row.slice_count
    return LiveResult(
        row.scan_id,
        row.at,
        row.probability,
        row.threshold,
        row.positive,
        row.uncertain,
        slices > 1,
    )


def _beside(
    results: Sequence[LiveResult], promotion: Promotion, before: Promotion
) -> Iterator[Beside]:
    """Yield the results for which the previous version's prediction is known, at its operating
    point of that time.
    """
    if before.version_id == promotion.version_id:
        known: Mapping[str, float] = {result.scan_id: result.probability for result in results}
    else:
        known = _known_probabilities([result.scan_id for result in results], before)
    card = before.version.card
    point = described(card, before.operating_point)
    for result in results:
        probability = known.get(result.scan_id)
        if probability is not None:
            state = state_at(card, point, probability, of_series=result.of_series)
            yield Beside(result, probability, state)


def _known_probabilities(scan_ids: Sequence[str], before: Promotion) -> Mapping[str, float]:
    """Return the previous version's probabilities for scans, from a shadow or from live results."""
    known: dict[str, float] = {}
    for table in (Prediction, EarlierAnswer):
        query = select(table.scan_id, table.probability).where(
            table.model_version_id == before.version_id, table.scan_id.in_(scan_ids)
        )
        known |= {row.scan_id: row.probability for row in db.session.execute(query)}
    in_shadow = (
        select(ShadowAnswer.scan_id, ShadowAnswer.probability)
        .join(ShadowAnswer.shadow)
        .where(
            Shadow.version_id == before.version_id,
            ShadowAnswer.status == JobStatus.DONE,
            ShadowAnswer.scan_id.in_(scan_ids),
        )
    )
    for row in db.session.execute(in_shadow):
        if row.probability is not None:
            known[row.scan_id] = row.probability
    return known


def state_at(
    card: Mapping[str, Any], point: Described, probability: float, *, of_series: bool
) -> State:
    """Return the state of a probability at an operating point, as a predict worker would."""
    threshold = point.scan_threshold if of_series else point.slice_threshold
    band = inconclusive_band(card, threshold, of_series=of_series)
    uncertain = band is not None and band[0] <= probability < band[1]
    return state_of(positive=probability >= threshold, uncertain=uncertain)


def _running(promotion: Promotion) -> Shadow | None:
    return db.session.scalar(
        select(Shadow).where(Shadow.promotion_id == promotion.id, Shadow.ended_at.is_(None))
    )


def _compared(promotion: Promotion, before: Promotion | None) -> list[Compared]:
    if before is None or before.version_id == promotion.version_id:
        return []
    return compared_by_patient(results_between(promotion.version, before.version) or [])


def promotion_with_version(promotion_id: int) -> Promotion | None:
    """Return a promotion with its version and who decided it."""
    return db.session.scalar(
        select(Promotion)
        .where(Promotion.id == promotion_id)
        .options(joinedload(Promotion.version), joinedload(Promotion.by))
    )
