"""The figures of a shadow: agreement of candidate and live version, drift of their probabilities,
and cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute

from ml.named_points import wilson
from ml.verdict import STATES, State
from webapp.extensions import db
from webapp.models import JobStatus, ModelVersion, Shadow, ShadowAnswer
from webapp.models.shadows import OPEN

DAYS_ONE_BY_ONE = 21
"""A shadow that has run for more days than this is shown by week."""
MOST_PERIODS = 53
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Agreement:
    """How many scans were in which state according to the live version and to the candidate.

    Attributes:
        counts: by (live, candidate).
        low, high: 95% interval of the fraction in the same state; None without scans. The series of
            one study count as separate scans.
    """

    counts: Mapping[tuple[State, State], int]
    low: float | None = None
    high: float | None = None

    @property
    def n(self) -> int:
        """The number of scans with both predictions."""
        return sum(self.counts.values())

    @property
    def same(self) -> int:
        """The number of scans in the same state according to both."""
        return sum(count for (live, candidate), count in self.counts.items() if live == candidate)

    @property
    def share(self) -> float | None:
        """The fraction in the same state, 0..1; None without scans."""
        return self.same / self.n if self.n else None

    @property
    def only_candidate(self) -> int:
        """The number of scans that only the candidate suspects."""
        return self._only(1)

    @property
    def only_live(self) -> int:
        """The number of scans that only the live version suspects."""
        return self._only(0)

    def _only(self, whose: int) -> int:
        return sum(
            count
            for pair, count in self.counts.items()
            if pair[whose] == "suspected" != pair[1 - whose]
        )


@dataclass(frozen=True)
class Spread:
    """The probabilities of one version in one period: 10th, 50th and 90th percentile, to a
    hundredth, and the fraction suspected.
    """

    low: float
    median: float
    high: float
    suspected: float


@dataclass(frozen=True)
class Period:
    """A day or a week, given by its first day."""

    begins: date
    n: int
    live: Spread
    candidate: Spread


@dataclass(frozen=True)
class Cost:
    """The cost of a shadow so far: scans by outcome, and seconds of processor time, in total and
    per prediction.
    """

    answered: int = 0
    failed: int = 0
    waiting: int = 0
    seconds: float = 0.0
    seconds_each: float | None = None


@dataclass
class _Tally:
    """The predictions of a period, by hundredths of the probability."""

    live: Counter[int] = field(default_factory=Counter)
    candidate: Counter[int] = field(default_factory=Counter)
    live_suspected: int = 0
    candidate_suspected: int = 0


def agreement_of(shadow_id: str) -> Agreement:
    """Return the agreement of candidate and live version."""
    states = select(ShadowAnswer.live_state, ShadowAnswer.state, func.count()).where(
        *_answered(shadow_id)
    )
    rows = db.session.execute(states.group_by(ShadowAnswer.live_state, ShadowAnswer.state))
    agreement = Agreement(
        {(live, candidate): count for live, candidate, count in rows if candidate is not None}
    )
    if not agreement.n:
        return agreement
    return Agreement(agreement.counts, *wilson(agreement.same, agreement.n))


def cost_of(shadow_id: str) -> Cost:
    """Return the cost of a shadow so far."""
    rows = db.session.execute(
        select(
            ShadowAnswer.status, func.count(), func.coalesce(func.sum(ShadowAnswer.seconds), 0.0)
        )
        .where(ShadowAnswer.shadow_id == shadow_id)
        .group_by(ShadowAnswer.status)
    ).all()
    counts = {status: count for status, count, _ in rows}
    seconds = sum((row[2] or 0.0 for row in rows), 0.0)
    tried = counts.get(JobStatus.DONE, 0) + counts.get(JobStatus.FAILED, 0)
    return Cost(
        counts.get(JobStatus.DONE, 0),
        counts.get(JobStatus.FAILED, 0),
        sum(counts.get(status, 0) for status in OPEN),
        seconds,
        seconds / tried if tried else None,
    )


def drift_of(shadow_id: str) -> list[Period]:
    """Return the probabilities by day, or by week if there are many days, the newest
    `MOST_PERIODS`, in order.
    """
    tallies: dict[date, _Tally] = {}
    for whose, (probability, state) in {
        "live": (ShadowAnswer.live_probability, ShadowAnswer.live_state),
        "candidate": (ShadowAnswer.probability, ShadowAnswer.state),
    }.items():
        for day, hundredth, suspected, count in db.session.execute(
            _by_day(shadow_id, probability, state)
        ):
            tally = tallies.setdefault(_as_date(day), _Tally())
            getattr(tally, whose)[int(hundredth)] += count
            if suspected:
                name = f"{whose}_suspected"
                setattr(tally, name, getattr(tally, name) + count)
    if len(tallies) > DAYS_ONE_BY_ONE:
        tallies = _by_week(tallies)
    return [
        Period(
            day,
            tally.live.total(),
            _spread(tally.live, tally.live_suspected),
            _spread(tally.candidate, tally.candidate_suspected),
        )
        for day, tally in sorted(tallies.items())[-MOST_PERIODS:]
    ]


def shadows_of(version: ModelVersion) -> Sequence[Shadow]:
    """Return the shadows in which a version was the candidate, newest first."""
    return db.session.scalars(
        select(Shadow).where(Shadow.version_id == version.id).order_by(Shadow.started_at.desc())
    ).all()


def seen_in_shadow(version: ModelVersion, live: ModelVersion) -> Agreement | None:
    """Return the agreement in the newest shadow of a version against the live one that has analyzed
    any scan; None if there is none.
    """
    answered = select(ShadowAnswer.id).where(*_answered(Shadow.id)).exists()
    newest = db.session.scalar(
        select(Shadow.id)
        .where(Shadow.version_id == version.id, Shadow.against_id == live.id, answered)
        .order_by(Shadow.started_at.desc())
        .limit(1)
    )
    return None if newest is None else agreement_of(newest)


def disagreements(shadow_id: str, live: str | None, own: str | None) -> list[ColumnElement[bool]]:
    """Return the condition for predictions in a different state than the live version's, or in
    these two states.
    """
    if live in STATES and own in STATES:
        pair = [ShadowAnswer.live_state == live, ShadowAnswer.state == own]
    else:
        pair = [ShadowAnswer.live_state != ShadowAnswer.state]
    return [*_answered(shadow_id), *pair]


def _answered(shadow_id: str | InstrumentedAttribute[str]) -> list[ColumnElement[bool]]:
    return [ShadowAnswer.shadow_id == shadow_id, ShadowAnswer.status == JobStatus.DONE]


def _by_day(
    shadow_id: str,
    probability: InstrumentedAttribute[float] | InstrumentedAttribute[float | None],
    state: InstrumentedAttribute[State] | InstrumentedAttribute[State | None],
) -> Select[Any]:
    """Return the statement for (day, hundredth, whether suspected, count): a bounded number of
    rows, however many scans there are.
    """
    columns = (
        func.date(ShadowAnswer.queued_at),
        func.round(100 * probability),
        state == "suspected",
    )
    return select(*columns, func.count()).where(*_answered(shadow_id)).group_by(*columns)


def _as_date(day: date | str) -> date:
    return day if isinstance(day, date) else date.fromisoformat(day)


def _by_week(tallies: Mapping[date, _Tally]) -> dict[date, _Tally]:
    weeks: dict[date, _Tally] = {}
    for day, tally in tallies.items():
        week = weeks.setdefault(day - timedelta(days=day.weekday()), _Tally())
        week.live += tally.live
        week.candidate += tally.candidate
        week.live_suspected += tally.live_suspected
        week.candidate_suspected += tally.candidate_suspected
    return weeks


def _spread(hundredths: Counter[int], suspected: int) -> Spread:
    total = hundredths.total()
    values, passed = [], 0
    wanted = list(QUANTILES)
    for hundredth, count in sorted(hundredths.items()):
        passed += count
        while wanted and passed >= wanted[0] * total:
            values.append(hundredth / 100)
            wanted.pop(0)
    low, median, high = values
    return Spread(low, median, high, suspected / total)
