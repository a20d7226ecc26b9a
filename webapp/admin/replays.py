"""The page of replays: random samples of predictions, computed again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flask import Response, abort, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import Select, func, select
from sqlalchemy.orm import defer, joinedload
from wtforms import IntegerField
from wtforms.validators import InputRequired, NumberRange

from webapp.admin.pages import REFUSED, blueprint, live_page, warn_of_delay
from webapp.audit import record
from webapp.extensions import db
from webapp.forms import PostedForm, is_id
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    Act,
    JobStatus,
    ModelVersion,
    Replay,
    ReplaySample,
    cancel_sample,
    sample_answers,
)
from webapp.models.replays import MOST_SAMPLED
from webapp.scans.replay_view import ReplayView, parts_listed, replay_view

SAMPLES_SHOWN = 20
ROWS_SHOWN = 50
NOTHING_TO_DRAW = "No result has a submitted file that is still stored."


class SampleForm(PostedForm):
    """The number of predictions to draw."""

    count = IntegerField(
        "Results",
        default=100,
        validators=[
            InputRequired("How many results?"),
            NumberRange(1, MOST_SAMPLED, f"Enter a number from 1 to {MOST_SAMPLED}."),
        ],
    )


@dataclass(frozen=True)
class Counts:
    """How the replays of a sample ended.

    `same` includes `same_in_part`, of which some parts (`not_compared`) are not stored.
    """

    same: int = 0
    different: int = 0
    failed: int = 0
    waiting: int = 0
    canceled: int = 0
    same_in_part: int = 0
    not_compared: tuple[str, ...] = ()

    @property
    def answered(self) -> int:
        """The number of results that were computed again."""
        return self.same + self.different


@blueprint.get("/replays")
@blueprint.get("/replays/progress", endpoint="replays_progress")
def replays() -> Response:
    """Show samples with their outcomes, and one of them in detail: `?sample=`, or the newest."""
    return _page(SampleForm())


@blueprint.post("/replays")
def sample() -> ResponseReturnValue:
    """Draw predictions at random and queue them to be computed again."""
    form = SampleForm()
    if not form.validate_on_submit():
        return _page(form, REFUSED)
    drawn = draw_sample(form.count.data, current_user.id)
    if drawn is None:
        flash(NOTHING_TO_DRAW, "warning")
        return redirect(url_for("admin.replays"))
    if not nudge(PREDICT_SCANS):
        warn_of_delay()
    return redirect(url_for("admin.replays", sample=drawn.id))


def draw_sample(most: int, by_id: str) -> ReplaySample | None:
    """Queue up to this many predictions, drawn at random, to be computed again, and commit; return
    the sample, or None if there is no prediction to draw. The caller notifies a worker.
    """
    drawn, count = sample_answers(most, by_id)
    if not count:
        db.session.rollback()
        return None
    record(Act.REPLAY_REQUESTED, drawn.id, detail=f"{count} answers")
    db.session.commit()
    return drawn


@blueprint.post("/replays/<sample_id>/cancel")
def cancel_replays(sample_id: str) -> ResponseReturnValue:
    """Cancel the pending replays of a sample."""
    drop_sample(db.get_or_404(ReplaySample, sample_id))
    return redirect(url_for("admin.replays", sample=sample_id))


def drop_sample(sample: ReplaySample) -> None:
    """Cancel the pending replays of a sample, and commit."""
    cancel_sample(sample.id)
    record(Act.REPLAY_CANCELLED, sample.id)
    db.session.commit()


def _page(form: SampleForm, status: int = 200) -> Response:
    samples = db.session.scalars(
        select(ReplaySample)
        .options(joinedload(ReplaySample.requested_by))
        .order_by(ReplaySample.created_at.desc(), ReplaySample.id)
        .limit(SAMPLES_SHOWN)
    ).all()
    sample_id = request.args.get("sample", "")
    shown = samples[0] if samples else None
    if sample_id:
        shown = db.session.get(ReplaySample, sample_id) if is_id(sample_id) else None
        if shown is None:
            abort(404)
    counts = counts_of([sample.id for sample in samples] + ([shown.id] if shown else []))
    return live_page(
        "replays",
        pending=bool(shown and counts[shown.id].waiting),
        status=status,
        form=form,
        samples=samples,
        counts=counts,
        shown=shown,
        unlike=_unlike(shown) if shown else [],
        not_compared=parts_listed(counts[shown.id].not_compared) if shown else "",
        most=ROWS_SHOWN,
    )


def counts_of(sample_ids: list[str]) -> Mapping[str, Counts]:
    """Return how the replays of samples ended."""
    by_sample = {sample_id: Counter[str]() for sample_id in sample_ids}
    not_compared: dict[str, dict[str, None]] = {sample_id: {} for sample_id in sample_ids}
    text = Replay.result["not_kept"].as_string()
    rows = db.session.execute(
        select(
            func.coalesce(Replay.sample_id, ""), Replay.status, Replay.is_same, text, func.count()
        )
        .where(Replay.sample_id.in_(by_sample))
        .group_by(Replay.sample_id, Replay.status, Replay.is_same, text)
    )
    for sample_id, status, is_same, not_kept, count in rows:
        counts, name = by_sample[sample_id], _outcome(status, is_same)
        counts[name] += count
        parts = json.loads(not_kept or "[]")
        if name == "same" and parts:
            counts["same_in_part"] += count
            not_compared[sample_id] |= dict.fromkeys(parts)
    return {
        sample_id: Counts(**counts, not_compared=tuple(not_compared[sample_id]))
        for sample_id, counts in by_sample.items()
    }


def _outcome(status: JobStatus, is_same: bool | None) -> str:
    if status == JobStatus.DONE:
        return "same" if is_same else "different"
    return {JobStatus.FAILED: "failed", JobStatus.CANCELLED: "canceled"}.get(status, "waiting")


def _unlike(sample: ReplaySample) -> list[tuple[Replay, ReplayView]]:
    """Return the first `ROWS_SHOWN` replays of a sample that differ or failed."""
    rows = unlike(sample).order_by(Replay.finished_at, Replay.id).limit(ROWS_SHOWN)
    return [(row, replay_view(row)) for row in db.session.scalars(rows)]


def unlike(sample: ReplaySample) -> Select[Replay]:
    """Return the statement for the replays of a sample that differ or failed."""
    return (
        select(Replay)
        .where(
            Replay.sample_id == sample.id,
            Replay.status.in_((JobStatus.DONE, JobStatus.FAILED)),
            Replay.is_same.is_not(True),
        )
        .options(joinedload(Replay.version).options(defer(ModelVersion.card)))
    )
