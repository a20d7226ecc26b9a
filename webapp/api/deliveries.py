"""Studies received by DICOM, and the delivery of results to the operator's destinations."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from marshmallow import Schema, fields
from sqlalchemy import select
from werkzeug.exceptions import Conflict

from webapp.admin.operations import SENT_MEANWHILE, give_up, send_again
from webapp.api.access import blueprint, operation, row_of
from webapp.api.lab_schemas import WorkSchema
from webapp.api.lists import PageQuerySchema, PageSchema, listed, page_of
from webapp.api.schemas import A_ID, COUNT
from webapp.api.work import work_as_json
from webapp.models import JobStatus, ReceivedStudy, ResultDelivery, Scope

GET, POST = HTTPMethod.GET, HTTPMethod.POST


class DeliverySchema(WorkSchema):
    """The delivery of a scan's result to a destination; `error` says why the last try failed."""

    scan_id = fields.String(required=True)
    destination = fields.String(
        required=True, metadata={"description": "Its name in `DICOM_DESTINATIONS`."}
    )
    tries = fields.Integer(
        required=True, validate=COUNT, metadata={"description": "The number of failed attempts."}
    )
    retry_at = fields.AwareDateTime(required=True, allow_none=True)
    sent = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "The kinds of objects that were accepted: sr, sc, seg."},
    )


class DeliveriesPageSchema(PageSchema):
    """One page of deliveries, newest first."""

    items = fields.List(fields.Nested(DeliverySchema), required=True)


class DeliveriesQuerySchema(PageQuerySchema):
    """Filters for the list of deliveries."""

    status = fields.Enum(JobStatus, by_value=fields.String, load_default=None)
    scan = fields.String(load_default=None, validate=A_ID)


class ReceivedStudySchema(Schema):
    """The outcome of a study received by DICOM."""

    id = fields.String(required=True)
    sent_by = fields.String(required=True, metadata={"description": "AE titles."})
    files = fields.Integer(required=True, validate=COUNT)
    scans = fields.Integer(required=True, validate=COUNT)
    sentence = fields.String(
        required=True, allow_none=True, metadata={"description": "What was refused, and why."}
    )
    closed_at = fields.AwareDateTime(required=True)


class ReceivedStudiesPageSchema(PageSchema):
    """One page of studies received by DICOM, newest first."""

    items = fields.List(fields.Nested(ReceivedStudySchema), required=True)


@operation(GET, "/deliveries", "list_deliveries", Scope.ADMIN, 422)
@blueprint.arguments(DeliveriesQuerySchema, location="query")
@blueprint.response(200, DeliveriesPageSchema)
def list_deliveries(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the deliveries of results to destinations, newest first."""
    rows = select(ResultDelivery)
    if query["status"]:
        rows = rows.where(ResultDelivery.status == query["status"])
    if query["scan"]:
        rows = rows.where(ResultDelivery.scan_id == query["scan"])
    page = page_of(rows, (ResultDelivery.created_at.desc(), ResultDelivery.id), query)
    return listed([delivery_as_json(row[0]) for row in page])


@operation(POST, "/deliveries/<delivery_id>/retry", "retry_delivery", Scope.ADMIN, 404)
@blueprint.response(200, DeliverySchema)
def retry_result(delivery_id: str) -> dict[str, Any]:
    """Send a result again that could not be sent, or retry it without waiting."""
    if not send_again(row_of(ResultDelivery, delivery_id).id):
        raise Conflict(SENT_MEANWHILE)
    return delivery_as_json(row_of(ResultDelivery, delivery_id))


@operation(POST, "/deliveries/<delivery_id>/cancel", "cancel_delivery", Scope.ADMIN, 404)
@blueprint.response(200, DeliverySchema)
def cancel_result(delivery_id: str) -> dict[str, Any]:
    """Give up sending a result."""
    if not give_up(row_of(ResultDelivery, delivery_id).id):
        raise Conflict(SENT_MEANWHILE)
    return delivery_as_json(row_of(ResultDelivery, delivery_id))


@operation(GET, "/received-studies", "list_received_studies", Scope.ADMIN, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ReceivedStudiesPageSchema)
def list_received_studies(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the studies received by DICOM, newest first, and what was refused of each."""
    order = (ReceivedStudy.closed_at.desc(), ReceivedStudy.id)
    studies = [row[0] for row in page_of(select(ReceivedStudy), order, query)]
    return listed(
        [
            {
                "id": str(study.id),
                "sent_by": study.sent_by,
                "files": study.files,
                "scans": study.scans,
                "sentence": study.sentence,
                "closed_at": study.closed_at,
            }
            for study in studies
        ]
    )


def delivery_as_json(row: ResultDelivery) -> dict[str, Any]:
    """Return a delivery in the form of `DeliverySchema`."""
    return {
        **work_as_json(row),
        "scan_id": row.scan_id,
        "destination": row.destination,
        "tries": row.tries,
        "retry_at": row.retry_at,
        "sent": [kind for kind in (row.sent or "").split(", ") if kind],
    }
