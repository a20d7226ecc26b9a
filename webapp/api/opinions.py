"""Opinions on scans, sharing, and the review queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPMethod
from typing import Any, NoReturn

from flask import g, url_for
from sqlalchemy import select
from werkzeug.exceptions import Conflict, NotFound, UnprocessableEntity

from webapp.api.access import blueprint, operation, require_own, require_visible
from webapp.api.lists import PageQuerySchema, listed, page_of, part_of
from webapp.api.schemas import (
    NewOpinionSchema,
    NewShareSchema,
    OpinionSchema,
    OpinionsSchema,
    ReviewQueueSchema,
    ShareSchema,
    SharesSchema,
)
from webapp.extensions import db
from webapp.forms import is_id
from webapp.models import Opinion, Scan, Scope, Share, User
from webapp.rates import within_opinion_rate, within_sharing_rate
from webapp.review.opinions import (
    GONE,
    NewOpinion,
    OpinionRefused,
    ScanGone,
    consensus_of,
    give,
    opinions_of,
    opinions_on,
    withdraw,
)
from webapp.review.queue import counts_for, due_of, queue_rows, random_share
from webapp.review.sharing import SharingRefused, end_share, share, shares_of

GET, POST, PUT, DELETE = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.PUT, HTTPMethod.DELETE


@operation(GET, "/scans/<scan_id>/opinions", "list_opinions", Scope.READ, 404, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, OpinionsSchema)
def list_opinions(query: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """List the opinions on a scan that is yours or shared with you, and their consensus."""
    require_visible(scan_id)
    opinions = opinions_of(db.session.get_one(Scan, scan_id))
    consensus = consensus_of(opinions)
    shown = part_of(opinions, lambda each: each.id, query)
    return listed(
        [opinion_as_json(each) for each in shown],
        confirmed=consensus.finding,
        disputed=consensus.is_disputed,
    )


@operation(
    PUT,
    "/scans/<scan_id>/opinions",
    "give_opinion",
    Scope.REVIEW,
    400,
    404,
    422,
    within=within_opinion_rate,
)
@blueprint.arguments(NewOpinionSchema, location="json")
@blueprint.response(200, OpinionSchema)
def give_opinion(body: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """Give your opinion on a scan, or on one of its slices; it replaces your earlier one on the
    same scan or slice.
    """
    require_visible(scan_id)
    db.session.commit()  # Values read under the lock must be current.
    new = NewOpinion(
        finding=body["finding"],
        slice_index=body["slice"],
        types=tuple(body["types"]),
        comment=body["comment"].replace("\r\n", "\n").strip(),
        region=body["region"],
    )
    try:
        opinion = give(scan_id, g.token_owner_id, new, from_queue=body["from_queue"])
    except ScanGone as err:
        db.session.rollback()
        raise NotFound(GONE) from err
    except OpinionRefused as err:
        db.session.rollback()
        raise UnprocessableEntity(str(err)) from err
    db.session.commit()
    return opinion_as_json(opinion)


@operation(
    DELETE,
    "/scans/<scan_id>/opinions/<opinion_id>",
    "withdraw_opinion",
    Scope.REVIEW,
    404,
    within=within_opinion_rate,
)
@blueprint.response(204)
def withdraw_opinion(scan_id: str, opinion_id: str) -> None:
    """Withdraw your own opinion."""
    require_visible(scan_id)
    if not is_id(opinion_id) or not withdraw(scan_id, opinion_id, g.token_owner_id):
        _refuse("Opinion not found.")
    db.session.commit()


@operation(GET, "/scans/<scan_id>/shares", "list_shares", Scope.READ, 404, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, SharesSchema)
def list_shares(query: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """List whom your scan is shared with."""
    require_own(scan_id)
    shown = part_of(shares_of(scan_id), lambda each: each.id, query)
    return listed([share_as_json(each) for each in shown])


@operation(
    POST, "/scans/<scan_id>/shares", "share_scan", Scope.SUBMIT, 404, within=within_sharing_rate
)
@blueprint.arguments(NewShareSchema, location="json")
@blueprint.response(201, ShareSchema)
def share_scan(body: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """Share your scan with a user, or with the reviewers."""
    require_own(scan_id)
    try:
        created = share(db.session.get_one(Scan, scan_id), body["username"])
    except SharingRefused as err:
        db.session.rollback()
        raise Conflict(str(err)) from err
    db.session.commit()
    return share_as_json(created)


@operation(
    DELETE,
    "/scans/<scan_id>/shares/<share_id>",
    "end_share",
    Scope.SUBMIT,
    404,
    within=within_sharing_rate,
)
@blueprint.response(204)
def stop_sharing(scan_id: str, share_id: str) -> None:
    """Stop sharing your scan with a user or the reviewers; opinions that were given remain."""
    require_own(scan_id)
    if not is_id(share_id) or not end_share(scan_id, share_id):
        _refuse("There is no such share.")
    db.session.commit()


@operation(GET, "/review", "read_review_queue", Scope.REVIEW, 404, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ReviewQueueSchema)
def review_queue(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the scans that you should read as a reviewer, in this order: inconclusive ones,
    disagreements, then a random sample.

    Set `from_queue` in your opinion, then get the first page again: scans that you have read are no
    longer listed.
    """
    reviewer = db.session.scalars(select(User).where(User.id == g.token_owner_id)).one()
    if not reviewer.is_reviewer:
        raise NotFound("Only reviewers can use the review queue.")
    rows, order = queue_rows(reviewer.id)
    return listed(
        [
            {
                "scan_id": due.scan.id,
                "url": url_for("api.show", scan_id=due.scan.id, _external=True),
                "reason": due.reason,
                "submitter": due.scan.user.username,
                "state": due.scan.verdict_state,
                "probability": due.scan.risk,
            }
            for due in due_of(page_of(rows, order, query))
        ],
        counts=counts_for(reviewer.id),
        random_share=random_share(),
    )


def opinion_as_json(opinion: Opinion) -> dict[str, Any]:
    """Return an opinion in the form of `OpinionSchema`."""
    return {
        "id": opinion.id,
        "author": opinion.author.username,
        "slice": opinion.slice_index,
        "finding": opinion.finding,
        "types": opinion.types,
        "comment": opinion.comment,
        "region": opinion.region,
        "agrees": opinion.agrees,
        "model_version_id": opinion.model_version_id,
        "model_positive": opinion.model_positive,
        "model_probability": opinion.model_probability,
        "sampling": opinion.sampling,
        "created_at": opinion.created_at,
        "updated_at": opinion.updated_at,
    }


def add_opinions(scans: Sequence[dict[str, Any]]) -> None:
    """Add the additional fields of an export to scans as dumped by `ScanSchema`: "opinions", and
    "confirmed" and "disputed", which are their consensus.
    """
    on = opinions_on([scan["id"] for scan in scans])
    for scan in scans:
        opinions = on[scan["id"]]
        consensus = consensus_of(opinions)
        scan |= {
            "opinions": OpinionSchema(many=True).dump(map(opinion_as_json, opinions)),
            "confirmed": consensus.finding,
            "disputed": consensus.is_disputed,
        }


def share_as_json(row: Share) -> dict[str, Any]:
    """Return a share in the form of `ShareSchema`."""
    return {
        "id": row.id,
        "username": row.with_user and row.with_user.username,
        "created_at": row.created_at,
    }


def _refuse(sentence: str) -> NoReturn:
    db.session.rollback()
    raise NotFound(sentence)
