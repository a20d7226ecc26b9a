"""Replays: past predictions that are computed again, for one scan or a random sample."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import g
from marshmallow import Schema, fields, validate
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from werkzeug.exceptions import Conflict, NotFound

from webapp.admin.replays import NOTHING_TO_DRAW, counts_of, draw_sample, drop_sample, unlike
from webapp.api.access import NO_SUCH_SCAN, blueprint, is_visible, operation, row_of
from webapp.api.lists import PageQuerySchema, PageSchema, listed, page_of, part_of
from webapp.api.schemas import COUNT
from webapp.extensions import LARGEST_INTEGER, db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    ORIGINAL_REMOVED,
    EarlierAnswer,
    Prediction,
    Replay,
    ReplaySample,
    Scan,
    Scope,
    replays_of,
)
from webapp.models.replays import MOST_SAMPLED
from webapp.rates import within_change_rate
from webapp.review.sharing import visible_to
from webapp.scans.changes import IS_COMPUTED, reproduce_answer
from webapp.scans.replay_view import PARTS, replay_view

GET, POST = HTTPMethod.GET, HTTPMethod.POST
OUTCOMES = ("waiting", "same", "different", "failed", "canceled")


class ReplaySchema(Schema):
    """A result of a scan that is recomputed."""

    id = fields.String(required=True)
    scan_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "null: neither yours nor shared with you."},
    )
    earlier_answer_id = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "From `earlier_answers` of the scan; null: the current result."},
    )
    outcome = fields.String(required=True, validate=validate.OneOf(OUTCOMES))
    headline = fields.String(required=True, metadata={"description": "A sentence."})
    details = fields.List(fields.String(), required=True)
    not_compared = fields.List(
        fields.String(validate=validate.OneOf(tuple(PARTS))),
        required=True,
        metadata={
            "description": "Parts of the original result that are not stored, so that an outcome of"
            ' "same" says nothing about them.'
        },
    )
    queued_at = fields.AwareDateTime(required=True)
    finished_at = fields.AwareDateTime(required=True, allow_none=True)


class ReplaysPageSchema(PageSchema):
    """One page of replays."""

    items = fields.List(fields.Nested(ReplaySchema), required=True)


class ReproduceSchema(Schema):
    """Which result of a scan to recompute."""

    earlier_answer_id = fields.Integer(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, LARGEST_INTEGER),
        metadata={"description": "From `earlier_answers` of the scan; null: the current result."},
    )


class DrawSchema(Schema):
    """The number of results to draw at random."""

    count = fields.Integer(load_default=100, validate=validate.Range(1, MOST_SAMPLED))


class ReplaySampleSchema(Schema):
    """Results drawn at random, and the outcome of recomputing them."""

    id = fields.String(required=True)
    created_at = fields.AwareDateTime(required=True)
    requested_by = fields.String(required=True, allow_none=True)
    same = fields.Integer(
        required=True, validate=COUNT, metadata={"description": "Reproduced to the last bit."}
    )
    same_in_part = fields.Integer(
        required=True,
        validate=COUNT,
        metadata={
            "description": "Of these, the ones of which a part is not stored and was not compared."
        },
    )
    different = fields.Integer(required=True, validate=COUNT)
    failed = fields.Integer(required=True, validate=COUNT)
    canceled = fields.Integer(required=True, validate=COUNT)
    waiting = fields.Integer(required=True, validate=COUNT)


class ReplaySamplesPageSchema(PageSchema):
    """One page of samples, newest first."""

    items = fields.List(fields.Nested(ReplaySampleSchema), required=True)


@operation(
    POST, "/scans/<scan_id>/reproduce", "reproduce_scan", Scope.SUBMIT, 404,
    within=within_change_rate,
)  # fmt: skip
@blueprint.arguments(ReproduceSchema, location="json")
@blueprint.response(202, ReplaySchema)
def reproduce_scan(body: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """Recompute a result of a scan with the version that produced it, to check that it is identical
    to the last bit. For the scan's owner and for administrators who can see the scan.
    """
    scan = seen_scan(scan_id)
    if scan.user_id != g.token_owner_id and not g.api_token.user.is_admin:
        raise NotFound(NO_SUCH_SCAN)
    answer: Prediction | EarlierAnswer | None = scan.prediction
    if (wanted := body["earlier_answer_id"]) is not None:
        answer = next((each for each in scan.earlier_answers if each.id == wanted), None)
    if answer is None:
        raise Conflict("There is no such result.")
    answer_id = answer.id
    if not reproduce_answer(scan, answer):
        raise Conflict(ORIGINAL_REMOVED if scan.original_removed_at else IS_COMPUTED)
    nudge(PREDICT_SCANS)
    return replay_as_json(replays_of(scan)[answer_id], is_seen=True)


@operation(GET, "/scans/<scan_id>/replays", "list_scan_replays", Scope.READ, 404, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ReplaysPageSchema)
def list_scan_replays(query: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """List the latest replay of each result of a scan."""
    page = part_of(list(replays_of(seen_scan(scan_id)).values()), lambda row: row.id, query)
    return listed([replay_as_json(row, is_seen=True) for row in page])


@operation(GET, "/replays", "list_replay_samples", Scope.ADMIN, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ReplaySamplesPageSchema)
def list_replay_samples(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the samples of recomputed results, newest first."""
    rows = select(ReplaySample).options(joinedload(ReplaySample.requested_by))
    page = page_of(rows, (ReplaySample.created_at.desc(), ReplaySample.id), query)
    return listed(samples_as_json([row[0] for row in page]))


@operation(POST, "/replays", "draw_replays", Scope.ADMIN)
@blueprint.arguments(DrawSchema, location="json")
@blueprint.response(202, ReplaySampleSchema)
def draw_replays(body: Mapping[str, Any]) -> dict[str, Any]:
    """Draw results at random and recompute them at the lowest priority."""
    drawn = draw_sample(body["count"], g.token_owner_id)
    if drawn is None:
        raise Conflict(NOTHING_TO_DRAW)
    nudge(PREDICT_SCANS)
    return samples_as_json([drawn])[0]


@operation(GET, "/replays/<sample_id>", "read_replay_sample", Scope.ADMIN, 404)
@blueprint.response(200, ReplaySampleSchema)
def read_replay_sample(sample_id: str) -> dict[str, Any]:
    """Get a sample with the outcomes of its results."""
    return samples_as_json([row_of(ReplaySample, sample_id)])[0]


@operation(GET, "/replays/<sample_id>/unlike", "list_unlike_replays", Scope.ADMIN, 404, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ReplaysPageSchema)
def list_unlike_replays(query: Mapping[str, Any], sample_id: str) -> dict[str, Any]:
    """List the results of a sample that were not reproduced: those that differ or failed."""
    rows = unlike(row_of(ReplaySample, sample_id))
    replays = [row[0] for row in page_of(rows, (Replay.finished_at, Replay.id), query)]
    ids = [row.scan_id for row in replays]
    seen = set(
        db.session.scalars(select(Scan.id).where(Scan.id.in_(ids), visible_to(g.token_owner_id)))
    )
    return listed([replay_as_json(row, is_seen=row.scan_id in seen) for row in replays])


@operation(POST, "/replays/<sample_id>/cancel", "cancel_replays", Scope.ADMIN, 404)
@blueprint.response(200, ReplaySampleSchema)
def cancel_replays(sample_id: str) -> dict[str, Any]:
    """Cancel the results of a sample that have not been recomputed yet."""
    sample = row_of(ReplaySample, sample_id)
    drop_sample(sample)
    return samples_as_json([sample])[0]


def seen_scan(scan_id: str) -> Scan:
    """Return a scan that the token's owner may see.

    Raises:
        NotFound: there is no such scan.
    """
    scan = db.session.scalar(
        select(Scan)
        .where(is_visible(scan_id))
        .options(joinedload(Scan.prediction).joinedload(Prediction.model_version))
    )
    if scan is None:
        raise NotFound(NO_SUCH_SCAN)
    return scan


def samples_as_json(samples: list[ReplaySample]) -> list[dict[str, Any]]:
    """Return samples in the form of `ReplaySampleSchema`."""
    counts = counts_of([sample.id for sample in samples])
    return [
        {
            "id": sample.id,
            "created_at": sample.created_at,
            "requested_by": sample.requested_by and sample.requested_by.username,
            "same": counts[sample.id].same,
            "same_in_part": counts[sample.id].same_in_part,
            "different": counts[sample.id].different,
            "failed": counts[sample.id].failed,
            "canceled": counts[sample.id].canceled,
            "waiting": counts[sample.id].waiting,
        }
        for sample in samples
    ]


def replay_as_json(replay: Replay, *, is_seen: bool) -> dict[str, Any]:
    """Return a replay in the form of `ReplaySchema`."""
    view = replay_view(replay)
    return {
        "id": replay.id,
        "scan_id": replay.scan_id if is_seen else None,
        "earlier_answer_id": replay.earlier_id,
        "outcome": view.outcome,
        "headline": view.headline,
        "details": list(view.details),
        "not_compared": list(view.not_compared),
        "queued_at": replay.queued_at,
        "finished_at": replay.finished_at,
    }
