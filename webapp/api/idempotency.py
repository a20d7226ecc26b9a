"""`Idempotency-Key`: a POST that is repeated is executed once, and gets the same response (the IETF
draft "The Idempotency-Key HTTP Header Field").

A row for the user and the key is claimed before the operation runs, and later gets the response.
Only successful responses are kept: a failed request has created nothing, so it may be retried with
the same key. If a response can be known before the commit that makes it true, `keep_answer` writes
it in the same transaction, so that a process killed in between leaves both or neither.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

from flask import Response, current_app, g, request
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from werkzeug.exceptions import BadRequest, Conflict, UnprocessableEntity

from webapp.extensions import database_now, db, noting, refers_to_deleted
from webapp.models import IdempotentRequest, new_id
from webapp.models.idempotency import KEEP_H

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
CLAIM_S = 120
"""After this many seconds, a request without a response counts as dead, and a new one with its key
takes over.
"""
RETRY_AFTER_S = 2
LARGEST_READ = 2**20
"""Bytes of a body that is not a form; larger bodies, and those that a view reads itself, are
compared by their length only.
"""
PART = 2**18
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class StillRunning(Conflict):
    """409: the first request with this key has no response yet."""

    description = "A request with this Idempotency-Key is still being answered; please try again."

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        """Return the headers, with Retry-After."""
        return [*super().get_headers(*args, **kwargs), ("Retry-After", str(RETRY_AFTER_S))]


@dataclass(frozen=True)
class Claim:
    """A request in progress: the row of its key, and the claim on that row."""

    id: str
    claim: str

    def write(self, status: int, body: str) -> bool:
        """Write the response, unless another request has taken over; return whether it was
        written.
        """
        written = (
            update(IdempotentRequest)
            .where(IdempotentRequest.id == self.id, IdempotentRequest.claim == self.claim)
            .values(status=status, body=body)
            .returning(IdempotentRequest.id)
        )
        return (
            db.session.scalar(written, execution_options={"synchronize_session": False}) is not None
        )

    def release(self) -> None:
        """Delete the row unless it has a response, so that the request may be retried."""
        unanswered = delete(IdempotentRequest).where(
            IdempotentRequest.id == self.id,
            IdempotentRequest.claim == self.claim,
            IdempotentRequest.status.is_(None),
        )
        with noting():
            db.session.execute(unanswered, execution_options={"synchronize_session": False})


def idempotent(
    view: Callable[..., Any], *, streams: bool, media_type: str = "application/json"
) -> Callable[..., Any]:
    """Return the view, wrapped so that a repeated request with the same key gets the same
    response.

    Args:
        streams: the view itself reads the body, of which only the length is compared; nothing is
            compared if it is a form.
        media_type: of its responses.
    """

    @wraps(view)
    def answer_once(*args: Any, **kwargs: Any) -> Any:
        key = request.headers.get(HEADER)
        if key is None:
            return view(*args, **kwargs)
        row = _claimed(_key(key), _fingerprint(streams=streams))
        if row.status is not None:
            replayed = Response(row.body, row.status, content_type=media_type)
            replayed.headers[REPLAYED] = "true"
            return replayed
        claim = g.idempotency_claim = Claim(row.id, row.claim)
        try:
            answer = current_app.make_response(view(*args, **kwargs))
        except BaseException:
            db.session.rollback()
            claim.release()
            raise
        if answer.status_code < 300:
            with noting():
                claim.write(answer.status_code, answer.get_data(as_text=True))
        else:
            claim.release()
        return answer

    return answer_once


def keep_answer(status: int, body: Any) -> None:
    """Keep the response to this request in the transaction that makes it true; the caller
    commits.

    Args:
        body: the view's response, as dumped by its schema.

    Raises:
        Conflict: another request with the same key has taken over.
    """
    claim: Claim | None = g.get("idempotency_claim")
    if claim is not None and not claim.write(status, current_app.json.dumps(body)):
        raise StillRunning


def _key(header: str) -> str:
    """Return the key, which may be in quotation marks.

    Raises:
        BadRequest: it is not a valid key.
    """
    key = header[1:-1] if len(header) > 2 and header[0] == header[-1] == '"' else header
    if not re.fullmatch(r"[!-~]{1,255}", key):
        raise BadRequest(f"{HEADER} must be 1 to 255 visible ASCII characters, such as a UUID.")
    return key


def _fingerprint(*, streams: bool) -> str:
    """Return a digest of method, address and body. For a form, the content counts, not its
    encoding: a program that sends it again may use a different multipart boundary.
    """
    digest = hashlib.sha256(f"{request.method} {request.full_path}\n".encode())
    if streams and request.mimetype in FORMS:
        # The length depends on the boundary, which many programs draw at random, at any length.
        digest.update(request.mimetype.encode())
    elif request.mimetype in FORMS:
        for name, value in request.form.items(multi=True):
            digest.update(repr((name, value)).encode())
        for name, file in request.files.items(multi=True):
            content = hashlib.sha256()
            while part := file.stream.read(PART):
                content.update(part)
            file.stream.seek(0)
            digest.update(repr((name, file.filename, content.hexdigest())).encode())
    elif not streams and (request.content_length or 0) <= LARGEST_READ:
        digest.update(request.mimetype.encode() + b"\n" + request.get_data())
    else:
        digest.update(f"{request.mimetype} {request.content_length}".encode())
    return digest.hexdigest()


def _claimed(key: str, fingerprint: str) -> IdempotentRequest:
    """Return the row of this request: with its response if there is one, otherwise claimed for
    it.

    Raises:
        StillRunning: another request with this key is in progress.
        UnprocessableEntity: the key belongs to another request.
    """
    of_key = select(IdempotentRequest, database_now()).where(
        IdempotentRequest.user_id == g.token_owner_id, IdempotentRequest.key == key
    )
    while True:
        known = db.session.execute(of_key.with_for_update()).one_or_none()
        if known is not None and known[0].created_at < known[1] - timedelta(hours=KEEP_H):
            db.session.delete(known[0])
            db.session.flush()
            known = None
        if known is not None:
            row = _claimed_again(*known, fingerprint)
            db.session.commit()
            return row
        row = IdempotentRequest(
            user_id=g.token_owner_id,
            key=key,
            fingerprint=fingerprint,
            claimed_until=database_now(CLAIM_S),
        )
        db.session.add(row)
        try:
            db.session.commit()
        except IntegrityError as err:
            db.session.rollback()
            if refers_to_deleted(err):  # The account was deleted meanwhile.
                raise
            # Another request with this key was inserted at the same moment.
        else:
            return row


def _claimed_again(row: IdempotentRequest, now: datetime, fingerprint: str) -> IdempotentRequest:
    """Return an existing row: with its response, or, if its request is dead, claimed again."""
    if row.fingerprint != fingerprint:
        db.session.rollback()
        raise UnprocessableEntity(
            f"This {HEADER} was used for another request; use each for one thing only."
        )
    if row.status is None:
        if row.claimed_until > now:
            db.session.rollback()
            raise StillRunning
        row.claim, row.claimed_until = new_id(), database_now(CLAIM_S)
    return row
