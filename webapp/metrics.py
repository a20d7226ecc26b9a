"""/metrics for Prometheus, computed from SQL at each scrape, so that every web process returns the
same values.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterator

from flask import Blueprint, Response, abort, current_app, request
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Float, extract, func, literal, select, type_coerce, union_all
from sqlalchemy.exc import SQLAlchemyError

from webapp.audit_chain import newest_check
from webapp.extensions import database_now, db
from webapp.jobs import IN_BACKGROUND, QUEUE_OF_TABLE, QUEUES
from webapp.models import JobStatus, Leased, Worker
from webapp.web_extensions import limiter

blueprint = Blueprint("metrics", __name__)
limiter.exempt(blueprint)
log = logging.getLogger(__name__)

HOUR_S, DAY_S = 3600, 24 * 3600


@blueprint.get("/metrics")
def metrics() -> Response:
    """Respond to a scrape with `METRICS_TOKEN` as bearer token; 404 if no token is configured."""
    token = current_app.config["METRICS_TOKEN"]
    if not token:
        abort(404)
    if not hmac.compare_digest(
        request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()
    ):
        return Response(
            "A bearer token is required.\n",
            401,
            {"WWW-Authenticate": "Bearer"},
            mimetype="text/plain",
        )
    registry = CollectorRegistry()
    try:
        registry.register(Rows())
        text = generate_latest(registry)
    except SQLAlchemyError as err:
        log.warning("The database cannot be read: %s", type(err).__name__)
        return Response("The database cannot be read.\n", 503, mimetype="text/plain")
    return Response(
        text, headers={"Cache-Control": "no-store"}, content_type=CONTENT_TYPE_PLAIN_0_0_4
    )


class Rows(Collector):
    """Collects metrics from the database, in four SQL statements."""

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the states of all jobs, durations of the last hour, workers, and the audit log."""
        jobs = GaugeMetricFamily(
            "hemoscan_jobs", "Jobs by table and state.", labels=["table", "state"]
        )
        attempts = GaugeMetricFamily(
            "hemoscan_attempts",
            "Attempts of the current jobs that ended with the death of a worker.",
            labels=["table"],
        )
        depth = GaugeMetricFamily(
            "hemoscan_queue_depth", "Queued jobs that users are waiting for.", labels=["queue"]
        )
        age = GaugeMetricFamily(
            "hemoscan_queue_oldest_age_seconds",
            "Age of the oldest queued job that users are waiting for, 0 if there is none.",
            labels=["queue"],
        )
        counts: dict[tuple[str, JobStatus], int] = {}
        deaths: dict[str, int] = {}
        ages: dict[str, float] = {}
        # Reads every row once, because `attempts` is not indexed.
        for name, status, number, died, oldest, now in db.session.execute(
            union_all(
                *(
                    select(
                        literal(_name(table)),
                        table.status,
                        func.count(),
                        func.sum(table.attempts),
                        func.min(table.queued_at),
                        database_now(),
                    ).group_by(table.status)
                    for table in QUEUE_OF_TABLE
                )
            )
        ):
            counts[name, status] = number
            deaths[name] = deaths.get(name, 0) + died
            if status == JobStatus.QUEUED:
                ages[name] = max((now - oldest).total_seconds(), 0.0)
        for table in QUEUE_OF_TABLE:
            attempts.add_metric([_name(table)], deaths.get(_name(table), 0))
            for state in JobStatus:
                jobs.add_metric([_name(table), state.value], counts.get((_name(table), state), 0))
        for queue in dict.fromkeys(QUEUE_OF_TABLE.values()):
            names = [
                _name(table)
                for table, of in QUEUE_OF_TABLE.items()
                if of == queue and table not in IN_BACKGROUND
            ]
            depth.add_metric(
                [queue], sum(counts.get((name, JobStatus.QUEUED), 0) for name in names)
            )
            age.add_metric([queue], max(ages.get(name, 0.0) for name in names))
        yield from (jobs, attempts, depth, age, *_durations(), *_workers(), *_audit_log())


def _durations() -> tuple[Metric, Metric]:
    """Return number and total duration of jobs finished in the last hour; only of those queued in
    the last day, so that the index limits the rows that are read.
    """
    count = GaugeMetricFamily(
        "hemoscan_finished_last_hour",
        "Jobs finished in the last hour, of those queued in the last day.",
        labels=["table"],
    )
    total = GaugeMetricFamily(
        "hemoscan_seconds_last_hour",
        "Total time of these jobs from claim to result.",
        labels=["table"],
    )
    rows = db.session.execute(
        union_all(
            *(
                select(
                    literal(_name(table)),
                    func.count(),
                    func.coalesce(func.sum(_seconds(table)), 0.0),
                ).where(
                    table.status == JobStatus.DONE,
                    table.queued_at > database_now(-DAY_S),
                    table.finished_at > database_now(-HOUR_S),
                )
                for table in QUEUE_OF_TABLE
            )
        )
    )
    for name, number, seconds in rows:
        count.add_metric([name], number)
        total.add_metric([name], round(float(seconds), 3))
    return count, total


def _workers() -> tuple[Metric, Metric]:
    """Return how many workers of each queue reported within a lease, and how many of these have an
    alarm.
    """
    family = GaugeMetricFamily(
        "hemoscan_workers", "Workers that reported within the last lease period.", labels=["queue"]
    )
    alarms = GaugeMetricFamily(
        "hemoscan_worker_alarms",
        "Of these, workers that cannot answer: their live model does not load.",
        labels=["queue"],
    )
    alive = (
        select(Worker.queue, func.count(), func.count(Worker.alarm))
        .where(Worker.seen_at > database_now(-current_app.config["LEASE_S"]))
        .group_by(Worker.queue)
    )
    by_queue = {queue: counts for queue, *counts in db.session.execute(alive)}
    for queue in QUEUES:
        number, with_alarm = by_queue.get(queue, (0, 0))
        family.add_metric([queue], number)
        alarms.add_metric([queue], with_alarm)
    return family, alarms


def _audit_log() -> Iterator[Metric]:
    """Yield whether the audit log's hash chain was intact when it was last verified, and when that
    was; nothing before the first verification.
    """
    check = newest_check()
    if check is None:
        return
    intact = GaugeMetricFamily(
        "hemoscan_audit_log_intact",
        "1 if the hash chain over the audit log was intact when last verified, else 0.",
    )
    intact.add_metric([], float(check.problem is None))
    verified = GaugeMetricFamily(
        "hemoscan_audit_log_verified_timestamp_seconds", "When it was last verified."
    )
    verified.add_metric([], check.at.timestamp())
    yield from (intact, verified)


def _seconds(table: type[Leased]) -> ColumnElement[float]:
    """Return the SQL expression for the seconds of a job's last attempt on this database."""
    if db.engine.dialect.name == "postgresql":
        return type_coerce(extract("epoch", table.finished_at - table.started_at), Float)
    return (func.julianday(table.finished_at) - func.julianday(table.started_at)) * 86_400.0


def _name(table: type[Leased]) -> str:
    return str(table.__tablename__)  # type: ignore[attr-defined]
