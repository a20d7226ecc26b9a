"""Shadows: a candidate that analyzes live scans, and its predictions next to the live version's."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import g
from marshmallow import Schema, fields, validate
from sqlalchemy import select
from sqlalchemy.orm import defer, joinedload
from werkzeug.exceptions import Conflict

from ml.verdict import STATES
from webapp.admin.shadows import HAS_ENDED, begin_shadow, finish_shadow
from webapp.api.access import blueprint, operation, row_of
from webapp.api.lab_schemas import KINDS, an_id
from webapp.api.lists import PageQuerySchema, PageSchema, listed, page_of
from webapp.api.schemas import COUNT, SHARE
from webapp.display import name_of_version
from webapp.extensions import db
from webapp.learning.shadow_figures import Spread, agreement_of, cost_of, disagreements, drift_of
from webapp.models import ModelVersion, Scan, Scope, Shadow, ShadowAnswer, ShadowRefused
from webapp.review.sharing import visible_to

GET, POST = HTTPMethod.GET, HTTPMethod.POST
A_STATE = validate.OneOf(STATES)


class StartShadowSchema(Schema):
    """The version to run in shadow mode."""

    version_id = an_id()


class ShadowSummarySchema(Schema):
    """A shadow run: a candidate (`version`) compared with the live version (`against`)."""

    id = fields.String(required=True)
    version_id = fields.String(required=True)
    version = fields.String(required=True, metadata={"description": "Its name."})
    against_id = fields.String(required=True)
    against = fields.String(required=True, metadata={"description": "Its name."})
    reads = fields.String(required=True, validate=validate.OneOf(KINDS))
    started_by = fields.String(required=True, allow_none=True)
    started_at = fields.AwareDateTime(required=True)
    ended_at = fields.AwareDateTime(required=True, allow_none=True)
    ended_because = fields.String(
        required=True, allow_none=True, metadata={"description": "A sentence."}
    )
    skipped = fields.Integer(
        required=True,
        validate=COUNT,
        metadata={
            "description": "Scans skipped because too many were waiting or the file was gone."
        },
    )


class ShadowsPageSchema(PageSchema):
    """One page of shadow runs, newest first."""

    items = fields.List(fields.Nested(ShadowSummarySchema), required=True)


class StatesSchema(Schema):
    """The number of scans with these two results."""

    live = fields.String(required=True, validate=A_STATE)
    candidate = fields.String(required=True, validate=A_STATE)
    count = fields.Integer(required=True, validate=COUNT)


class AgreementSchema(Schema):
    """Agreement of candidate and live version, with a 95% Wilson interval."""

    n = fields.Integer(required=True, validate=COUNT)
    same = fields.Integer(required=True, validate=COUNT)
    share = fields.Float(required=True, allow_none=True, validate=SHARE)
    low = fields.Float(required=True, allow_none=True, validate=SHARE)
    high = fields.Float(required=True, allow_none=True, validate=SHARE)
    only_candidate = fields.Integer(
        required=True, validate=COUNT, metadata={"description": "Suspected by the candidate only."}
    )
    only_live = fields.Integer(
        required=True,
        validate=COUNT,
        metadata={"description": "Suspected by the live version only."},
    )
    states = fields.List(fields.Nested(StatesSchema), required=True)


class SpreadSchema(Schema):
    """A version's probabilities in a period: percentiles, and the fraction suspected."""

    p10 = fields.Float(required=True, validate=SHARE)
    p50 = fields.Float(required=True, validate=SHARE)
    p90 = fields.Float(required=True, validate=SHARE)
    suspected = fields.Float(required=True, validate=SHARE)


class PeriodSchema(Schema):
    """A day, or a week if there are many days."""

    begins = fields.Date(required=True)
    n = fields.Integer(required=True, validate=COUNT)
    live = fields.Nested(SpreadSchema, required=True)
    candidate = fields.Nested(SpreadSchema, required=True)


class ShadowCostSchema(Schema):
    """Scans by outcome, and the time that predict workers took."""

    answered = fields.Integer(required=True, validate=COUNT)
    failed = fields.Integer(required=True, validate=COUNT)
    waiting = fields.Integer(required=True, validate=COUNT)
    seconds = fields.Float(required=True, validate=COUNT)
    seconds_each = fields.Float(required=True, allow_none=True, validate=COUNT)


class ShadowSchema(ShadowSummarySchema):
    """A shadow run with its agreement, drift and cost."""

    agreement = fields.Nested(AgreementSchema, required=True)
    drift = fields.List(fields.Nested(PeriodSchema), required=True)
    cost = fields.Nested(ShadowCostSchema, required=True)


class DisagreementSchema(Schema):
    """A scan on which candidate and live version disagree."""

    scan_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "null: neither yours nor shared with you."},
    )
    live_state = fields.String(required=True, validate=A_STATE)
    live_probability = fields.Float(required=True, validate=SHARE)
    state = fields.String(required=True, validate=A_STATE)
    probability = fields.Float(required=True, validate=SHARE)
    answered_at = fields.AwareDateTime(required=True)


class DisagreementsPageSchema(PageSchema):
    """One page of disagreements, newest first."""

    items = fields.List(fields.Nested(DisagreementSchema), required=True)


class DisagreementsQuerySchema(PageQuerySchema):
    """Which scans are listed: all with different results, or those with two given results (which
    may be the same).
    """

    live = fields.String(load_default=None, validate=A_STATE)
    candidate = fields.String(load_default=None, validate=A_STATE)


@operation(GET, "/shadows", "list_shadows", Scope.ADMIN, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ShadowsPageSchema)
def list_shadows(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the shadow runs, newest first."""
    rows = select(Shadow).options(
        joinedload(Shadow.started_by),
        joinedload(Shadow.version).options(defer(ModelVersion.card)),
        joinedload(Shadow.against).options(defer(ModelVersion.card)),
    )
    page = page_of(rows, (Shadow.started_at.desc(), Shadow.id), query)
    return listed([shadow_as_json(row[0]) for row in page])


@operation(POST, "/shadows", "start_shadow", Scope.ADMIN, 404)
@blueprint.arguments(StartShadowSchema, location="json")
@blueprint.response(201, ShadowSummarySchema)
def launch_shadow(body: Mapping[str, Any]) -> dict[str, Any]:
    """Start shadow mode: a version also analyzes live scans, at the lowest priority. At most one
    version for slices and one for series at a time.
    """
    try:
        shadow = begin_shadow(row_of(ModelVersion, body["version_id"]), g.token_owner_id)
    except ShadowRefused as err:
        raise Conflict(str(err)) from err
    return shadow_as_json(row_of(Shadow, shadow.id))


@operation(GET, "/shadows/<shadow_id>", "read_shadow", Scope.ADMIN, 404)
@blueprint.response(200, ShadowSchema)
def read_shadow(shadow_id: str) -> dict[str, Any]:
    """Get a shadow run with its agreement, drift and cost."""
    shadow = row_of(Shadow, shadow_id)
    agreement = agreement_of(shadow.id)
    return {
        **shadow_as_json(shadow),
        "agreement": {
            "n": agreement.n,
            "same": agreement.same,
            "share": agreement.share,
            "low": agreement.low,
            "high": agreement.high,
            "only_candidate": agreement.only_candidate,
            "only_live": agreement.only_live,
            "states": [
                {"live": live, "candidate": own, "count": count}
                for (live, own), count in sorted(agreement.counts.items())
            ],
        },
        "drift": [
            {
                "begins": period.begins,
                "n": period.n,
                "live": spread_as_json(period.live),
                "candidate": spread_as_json(period.candidate),
            }
            for period in drift_of(shadow.id)
        ],
        "cost": cost_of(shadow.id),
    }


@operation(POST, "/shadows/<shadow_id>/stop", "stop_shadow", Scope.ADMIN, 404)
@blueprint.response(200, ShadowSummarySchema)
def stop_shadow(shadow_id: str) -> dict[str, Any]:
    """Stop shadow mode; scans still waiting for it are canceled."""
    if not finish_shadow(row_of(Shadow, shadow_id)):
        raise Conflict(HAS_ENDED)
    return shadow_as_json(row_of(Shadow, shadow_id))


@operation(GET, "/shadows/<shadow_id>/disagreements", "list_disagreements", Scope.ADMIN, 404, 422)
@blueprint.arguments(DisagreementsQuerySchema, location="query")
@blueprint.response(200, DisagreementsPageSchema)
def list_disagreements(query: Mapping[str, Any], shadow_id: str) -> dict[str, Any]:
    """List the scans on which candidate and live version differ, newest first."""
    which = disagreements(row_of(Shadow, shadow_id).id, query["live"], query["candidate"])
    rows = select(ShadowAnswer).where(*which)
    page = page_of(rows, (ShadowAnswer.queued_at.desc(), ShadowAnswer.id), query)
    answers = [row[0] for row in page]
    ids = [answer.scan_id for answer in answers]
    seen = set(
        db.session.scalars(select(Scan.id).where(Scan.id.in_(ids), visible_to(g.token_owner_id)))
    )
    return listed(
        [
            {
                "scan_id": answer.scan_id if answer.scan_id in seen else None,
                "live_state": answer.live_state,
                "live_probability": answer.live_probability,
                "state": answer.state,
                "probability": answer.probability,
                "answered_at": answer.finished_at,
            }
            for answer in answers
        ]
    )


def shadow_as_json(shadow: Shadow) -> dict[str, Any]:
    """Return a shadow in the form of `ShadowSummarySchema`."""
    return {
        "id": shadow.id,
        "version_id": shadow.version_id,
        "version": name_of_version(shadow.version),
        "against_id": shadow.against_id,
        "against": name_of_version(shadow.against),
        "reads": shadow.reads,
        "started_by": shadow.started_by and shadow.started_by.username,
        "started_at": shadow.started_at,
        "ended_at": shadow.ended_at,
        "ended_because": shadow.ended_because,
        "skipped": shadow.skipped,
    }


def spread_as_json(spread: Spread) -> dict[str, float]:
    """Return the probabilities of a period in the form of `SpreadSchema`."""
    return {
        "p10": spread.low,
        "p50": spread.median,
        "p90": spread.high,
        "suspected": spread.suspected,
    }
