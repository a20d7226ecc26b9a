"""Which results a user is notified of, and the status of the messages."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from flask import g
from marshmallow import Schema, fields
from sqlalchemy import select
from werkzeug.exceptions import Conflict, NotFound

from webapp.accounts.notifications import channels_offered, queue_test, save_choices
from webapp.api.access import blueprint, operation
from webapp.api.lab_schemas import WorkSchema
from webapp.api.lists import PageQuerySchema, PageSchema, listed, page_of, part_of
from webapp.api.schemas import COUNT
from webapp.api.work import work_as_json
from webapp.extensions import db
from webapp.models import Channel, Notification, Scope, Wanted, choices_of
from webapp.rates import within_settings_rate, within_test_rate

GET, POST, PUT = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.PUT


class WantedSchema(Schema):
    """The results that a user wants to be notified of."""

    wanted = fields.Enum(Wanted, by_value=fields.String, required=True)


class ChoiceSchema(WantedSchema):
    """The results that you want to be notified of through a channel."""

    channel = fields.Enum(Channel, by_value=fields.String, required=True)


class ChoicesPageSchema(PageSchema):
    """One page of your choices, one for each channel that this service offers."""

    items = fields.List(fields.Nested(ChoiceSchema), required=True)


class MessageSchema(WorkSchema):
    """A message to you, and its delivery status."""

    channel = fields.Enum(Channel, by_value=fields.String, required=True)
    scan_id = fields.String(
        required=True, allow_none=True, metadata={"description": "null: a test message."}
    )
    tries = fields.Integer(required=True, validate=COUNT)
    retry_at = fields.AwareDateTime(
        required=True, allow_none=True, metadata={"description": "The next attempt."}
    )


class MessagesPageSchema(PageSchema):
    """One page of messages, newest first."""

    items = fields.List(fields.Nested(MessageSchema), required=True)


class QueuedMessagesSchema(Schema):
    """The number of queued messages."""

    queued = fields.Integer(required=True, validate=COUNT)


@operation(GET, "/notifications", "list_notification_choices", Scope.READ, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ChoicesPageSchema)
def list_notification_choices(query: Mapping[str, Any]) -> dict[str, Any]:
    """List which results you want to be notified of, for each channel that this service offers."""
    chosen, offered = choices_of(g.token_owner_id), channels_offered()
    shown = part_of([each for each in Channel if each in offered], str, query)
    return listed([{"channel": channel, "wanted": chosen[channel]} for channel in shown])


@operation(
    PUT,
    "/notifications/<channel>",
    "choose_notifications",
    Scope.SUBMIT,
    400,
    404,
    422,
    within=within_settings_rate,
)
@blueprint.arguments(WantedSchema, location="json")
@blueprint.response(200, ChoiceSchema)
def choose_notifications(body: Mapping[str, Any], channel: str) -> dict[str, Any]:
    """Choose which results you want to be notified of through a channel."""
    if channel not in channels_offered():
        raise NotFound("There is no such channel here.")
    if not save_choices(g.token_owner_id, {Channel(channel): body["wanted"]}):
        raise NotFound("The account was deleted in the meantime.")
    return {"channel": Channel(channel), "wanted": body["wanted"]}


@operation(GET, "/notifications/messages", "list_messages", Scope.READ, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, MessagesPageSchema)
def list_messages(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the messages to you, newest first, and whether they were sent."""
    rows = select(Notification).where(Notification.user_id == g.token_owner_id)
    page = page_of(rows, (Notification.created_at.desc(), Notification.id), query)
    return listed([message_as_json(row[0]) for row in page])


@operation(
    POST,
    "/notifications/test",
    "send_test_messages",
    Scope.SUBMIT,
    within=within_test_rate,
)
@blueprint.response(202, QueuedMessagesSchema)
def send_test_messages() -> dict[str, Any]:
    """Have a test message sent to you through each channel that you chose, except the browser."""
    queued = queue_test(g.token_owner_id)
    db.session.commit()
    if not queued:
        raise Conflict("You have not turned on any channel that sends messages.")
    return {"queued": queued}


def message_as_json(message: Notification) -> dict[str, Any]:
    """Return a message in the form of `MessageSchema`."""
    return {
        **work_as_json(message),
        "channel": Channel(message.channel),
        "scan_id": message.scan_id,
        "tries": message.tries,
        "retry_at": message.retry_at,
    }
