"""Health checks for load balancers and operators: of this process, and of the whole service."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, current_app, jsonify
from sqlalchemy import exists, select
from sqlalchemy.exc import SQLAlchemyError

from webapp.extensions import database_now, db
from webapp.jobs import PREDICT
from webapp.models import Worker
from webapp.space import has_room
from webapp.storage import storage
from webapp.web_extensions import limiter

blueprint = Blueprint("health", __name__)
limiter.exempt(blueprint)
log = logging.getLogger(__name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """Report that this process is up. Checks nothing else, so that a slow database does not cause a
    restart.
    """
    return uncached({"status": "up"}, 200)


@blueprint.get("/readyz")
def readyz() -> Response:
    """Respond with 200 if a scan submitted now would be accepted and analyzed, else with 503 and
    what is missing.
    """
    try:
        checks: dict[str, bool | None] = {
            "database": True,
            **checks_by_rows(),
            "free_space": has_room(),
        }
    except SQLAlchemyError as err:
        log.warning("The database cannot be read: %s", type(err).__name__)
        checks = {  # None: unknown.
            "database": False,
            "broker": None,
            "predict_worker": None,
            "free_space": None,
        }
    checks["storage"] = storage.answers()
    ready = all(checks.values())
    return uncached(
        {"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503
    )


def checks_by_rows() -> dict[str, bool]:
    """Return whether broker and predict workers are up, in one SQL statement.

    The broker is not contacted: every few seconds a sweep is sent through it, and a worker records
    its arrival.
    """
    delivered_after = database_now(-4 * current_app.config["SWEEP_S"])
    seen_after = database_now(-current_app.config["LEASE_S"])
    broker, predict_worker = db.session.execute(
        select(
            exists().where(Worker.delivered_at > delivered_after),
            exists().where(
                Worker.queue == PREDICT, Worker.seen_at > seen_after, Worker.alarm.is_(None)
            ),
        )
    ).one()
    return {"broker": bool(broker), "predict_worker": bool(predict_worker)}


def uncached(body: dict[str, object], status: int) -> Response:
    """Return a JSON response that must not be cached."""
    answer = jsonify(body)
    answer.status_code = status
    answer.headers["Cache-Control"] = "no-store"
    return answer
