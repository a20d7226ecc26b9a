"""Opinions on scans, sharing, and the review queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from flask import g, url_for
from sqlalchemy import select
from werkzeug.exceptions import Conflict, NotFound, UnprocessableEntity

from webapp.api.access import blueprint, documented, require_own, require_visible
from webapp.api.schemas import (
    DueSchema,
    NewOpinionSchema,
    NewShareSchema,
    OpinionSchema,
    OpinionsSchema,
    ShareSchema,
)
from webapp.extensions import db
from webapp.forms import is_id
from webapp.models import Opinion, Scan, Share, User
from webapp.opinions import (
    GONE,
    OpinionRefused,
    Said,
    ScanGone,
    consensus_of,
    give,
    opinions_of,
    withdraw,
)
from webapp.review import queue_of
from webapp.sharing import SharingRefused, end_share, share, shares_of

MOST_DUE = 100


@blueprint.get("/scans/<scan_id>/opinions")
@documented("list_opinions", 404)
@blueprint.response(200, OpinionsSchema)
def list_opinions(scan_id: str) -> dict[str, Any]:
    """List the opinions on a scan that is yours or shared with you, and what they say together."""
    require_visible(scan_id)
    opinions = opinions_of(db.session.get_one(Scan, scan_id))
    consensus = consensus_of(opinions)
    return {
        "confirmed": consensus.finding,
        "disputed": consensus.is_disputed,
        "items": [opinion_as_json(each) for each in opinions],
    }


@blueprint.put("/scans/<scan_id>/opinions")
@documented("give_opinion", 400, 404, 422)
@blueprint.arguments(NewOpinionSchema, location="json")
@blueprint.response(200, OpinionSchema)
def give_opinion(given: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """Give your opinion on a scan, or on one of its slices; it replaces your earlier one on the
    same scan or slice.
    """
    require_visible(scan_id)
    db.session.commit()  # What is read under the lock must be new.
    said = Said(
        finding=given["finding"],
        slice_index=given["slice"],
        types=tuple(given["types"]),
        comment=given["comment"].replace("\r\n", "\n").strip(),
        region=given["region"],
    )
    try:
        opinion = give(scan_id, g.token_owner_id, said)
    except ScanGone as err:
        db.session.rollback()
        raise NotFound(GONE) from err
    except OpinionRefused as err:
        db.session.rollback()
        raise UnprocessableEntity(str(err)) from err
    db.session.commit()
    return opinion_as_json(opinion)


@blueprint.delete("/scans/<scan_id>/opinions/<opinion_id>")
@documented("withdraw_opinion", 404)
@blueprint.response(204)
def withdraw_opinion(scan_id: str, opinion_id: str) -> None:
    """Withdraw your own opinion."""
    require_visible(scan_id)
    if not is_id(opinion_id) or not withdraw(scan_id, opinion_id, g.token_owner_id):
        _refuse("Opinion not found.")
    db.session.commit()


@blueprint.get("/scans/<scan_id>/shares")
@documented("list_shares", 404)
@blueprint.response(200, ShareSchema(many=True))
def list_shares(scan_id: str) -> list[dict[str, Any]]:
    """List with whom your scan is shared."""
    require_own(scan_id)
    return [share_as_json(each) for each in shares_of(scan_id)]


@blueprint.post("/scans/<scan_id>/shares")
@documented("share_scan", 400, 404, 409, 422)
@blueprint.arguments(NewShareSchema, location="json")
@blueprint.response(201, ShareSchema)
def share_scan(given: Mapping[str, Any], scan_id: str) -> dict[str, Any]:
    """Share your scan with a person, or with the reviewers."""
    require_own(scan_id)
    try:
        made = share(db.session.get_one(Scan, scan_id), given["username"])
    except SharingRefused as err:
        db.session.rollback()
        raise Conflict(str(err)) from err
    db.session.commit()
    return share_as_json(made)


@blueprint.delete("/scans/<scan_id>/shares/<share_id>")
@documented("end_share", 404)
@blueprint.response(204)
def stop_sharing(scan_id: str, share_id: str) -> None:
    """Take back what your scan was shared with; opinions that were given remain."""
    require_own(scan_id)
    if not is_id(share_id) or not end_share(scan_id, share_id):
        _refuse("The scan is not shared like this.")
    db.session.commit()


@blueprint.get("/review")
@documented("read_review_queue", 404)
@blueprint.response(200, DueSchema(many=True))
def review_queue() -> list[dict[str, Any]]:
    """List the scans that you, a reviewer, should read next, at most 100, in order."""
    reviewer = db.session.scalars(select(User).where(User.id == g.token_owner_id)).one()
    if not reviewer.is_reviewer:
        raise NotFound("The review queue is for reviewers.")
    return [
        {
            "scan_id": due.scan.id,
            "url": url_for("api.show", scan_id=due.scan.id, _external=True),
            "reason": due.reason,
            "submitter": due.scan.user.username,
            "state": due.scan.verdict_state,
            "probability": due.scan.risk,
        }
        for due in queue_of(reviewer.id, MOST_DUE)
    ]


def opinion_as_json(opinion: Opinion) -> dict[str, Any]:
    """Return an opinion as the API shows it (`OpinionSchema`)."""
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
        "model_probability": opinion.model_probability,
        "created_at": opinion.created_at,
        "updated_at": opinion.updated_at,
    }


def share_as_json(made: Share) -> dict[str, Any]:
    """Return a share as the API shows it (`ShareSchema`)."""
    return {
        "id": made.id,
        "username": made.with_user and made.with_user.username,
        "created_at": made.created_at,
    }


def _refuse(sentence: str) -> NoReturn:
    db.session.rollback()
    raise NotFound(sentence)
