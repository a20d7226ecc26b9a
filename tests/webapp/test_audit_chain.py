"""The hash chain over the audit log: what it notices, and that it goes on after a trim."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import delete, event, func, select, text, update

from webapp import audit_chain
from webapp.audit_chain import LOCK, Head, head_of_chain, seal, trim, verify, verify_and_note
from webapp.extensions import db, utc_now
from webapp.models import Act, AuditAnchor, AuditCheck, AuditEvent, AuditLink, Role

DAY = timedelta(days=1)


def add_events(count: int, *, days_ago: int = 0, **columns: object) -> None:
    """Commit that many events."""
    at = utc_now() - days_ago * DAY
    for _ in range(count):
        db.session.add(AuditEvent(act=Act.LOGGED_IN, address="192.0.2.1", at=at, **columns))
        db.session.flush()
    db.session.commit()


def sealed() -> int:
    """Seal what there is, and commit."""
    count = seal()
    db.session.commit()
    return count


def test_events_are_sealed_once_in_any_order_and_verify(any_database_app: Flask) -> None:
    with any_database_app.app_context():
        assert (sealed(), verify().problem) == (0, None)
        add_events(3)
        db.session.execute(delete(AuditEvent).where(AuditEvent.id == 2))
        db.session.commit()
        assert (sealed(), sealed()) == (2, 0)
        add_events(1, id=2)  # One that was committed late.
        assert sealed() == 1
        verification = verify()
        assert (verification.events, verification.unsealed, verification.problem) == (3, 0, None)
        assert verification.head == head_of_chain() and verification.head.position == 3
        order = db.session.scalars(select(AuditLink.event_id).order_by(AuditLink.position)).all()
        assert order == [1, 3, 2]


def test_a_second_worker_leaves_the_chain_to_the_first(any_database_app: Flask) -> None:
    with any_database_app.app_context():
        if db.engine.dialect.name != "postgresql":
            return  # It has one writer at a time.
        add_events(2)
        with db.engine.connect() as other:
            other.execute(select(func.pg_advisory_xact_lock(LOCK)))
            assert sealed() == 0
        assert sealed() == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE audit_event SET address = '192.0.2.9' WHERE id = 2", "Event 2, dated"),
        ("UPDATE audit_event SET actor_id = NULL, object_id = 'x' WHERE id = 2", "Event 2, dated"),
        ("DELETE FROM audit_event WHERE id = 2", "Event 2 was deleted (link 2)."),
        ("DELETE FROM audit_link WHERE position = 2", "Links 2 to 2 of the chain are gone."),
        ("DELETE FROM audit_link WHERE position = 4", "The end is gone: the chain reached 4"),
        ("UPDATE audit_link SET hash = 'x' WHERE position = 4", "Event 4, dated"),
        ("INSERT INTO audit_anchor (position, hash, at) SELECT 2, hash, sealed_at FROM audit_link"
         " WHERE position = 2", "Everything up to link 2 was deleted, and no event records that."),
    ],
)  # fmt: skip
def test_every_change_is_noticed(app: Flask, change: str, problem: str) -> None:
    with app.app_context():
        add_events(4)
        sealed()
        verify_and_note()
        db.session.commit()
        db.session.execute(text(change))
        db.session.commit()
        noticed = verify_and_note().problem
        db.session.commit()
        assert noticed and noticed.startswith(problem)
        assert db.session.scalars(select(AuditCheck.problem)).all() == [noticed]
        assert verify_and_note().problem == noticed  # An hour later it is no less broken.


def test_a_chain_that_was_written_anew_is_noticed_by_a_head_that_was_noted(app: Flask) -> None:
    with app.app_context():
        add_events(3)
        sealed()
        noted = verify().head
        db.session.execute(update(AuditEvent).where(AuditEvent.id == 1).values(address="x"))
        db.session.execute(delete(AuditLink))
        db.session.commit()
        sealed()
        assert verify().problem is None
        problem = "The chain was rewritten: link 3 had another hash before."
        assert verify(noted).problem == problem
        verify_and_note()
        db.session.commit()
        assert verify(noted).problem == problem  # Also where the database's own check ends there.
        runner = app.test_cli_runner()
        result = runner.invoke(args=["audit-verify", "--head", str(noted)])
        assert result.exit_code == 1 and problem in result.output
        fine = runner.invoke(args=["audit-verify"])
        assert (fine.exit_code, fine.output.split(".")[0]) == (0, "3 events are unchanged")
        head = fine.output.split()[-1]
        assert runner.invoke(args=["audit-verify", "--head", head]).exit_code == 0
        assert "64 hexadecimal" in runner.invoke(args=["audit-verify", "--head", "3"]).output


def test_what_is_trimmed_leaves_an_anchor_and_the_rest_verifies(
    any_database_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "TRIMMED_AT_ONCE", 2)
    with any_database_app.app_context():
        add_events(5, days_ago=40)
        add_events(2)
        sealed()
        noted = Head(7, head_of_chain().hash)
        assert (trim(50), trim(30), trim(30)) == (0, 5, 0)
        sealed()
        verification = verify(noted)
        assert (verification.events, verification.problem) == (3, None)
        rows = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
        assert [one.act for one in rows] == ["logged in", "logged in", "audit log trimmed"]
        assert db.session.scalars(select(AuditAnchor.position)).all() == [5]
        # Another worker's trim that looked a moment earlier, and was committed later.
        db.session.add(AuditAnchor(position=4, hash="0" * 64))
        db.session.commit()
        assert verify(noted).problem is None
        # A head from before the anchor can no longer be looked for, and that is said.
        assert trim(0) == 3
        result = any_database_app.test_cli_runner().invoke(
            args=["audit-verify", "--head", str(noted)]
        )
        assert result.exit_code == 1 and "was trimmed" in result.output
        # A trim that was interrupted after its anchor is finished by the next.
        sealed()
        monkeypatch.setattr(audit_chain, "_delete_up_to", lambda position: 0)
        trim(0)
        monkeypatch.undo()
        sealed()
        assert trim(30) > 0 and verify().problem is None


def test_pages_and_metrics_tell_of_a_broken_chain_and_export_it(
    app: Flask, logged_in: Callable[..., FlaskClient]
) -> None:
    admin = logged_in("root", Role.ADMIN)
    assert "has not been verified yet" in admin.get("/admin/audit").text
    app.config["METRICS_TOKEN"] = "sesame"
    token = {"Authorization": "Bearer sesame"}
    with app.app_context():
        sealed()
        verify_and_note()
        db.session.commit()
    assert "no event was changed or removed (1 in the chain)" in admin.get("/admin").text
    assert "hemoscan_audit_log_intact 1.0" in app.test_client().get("/metrics", headers=token).text
    rows = list(csv.DictReader(io.StringIO(admin.get("/admin/audit.csv?by=root").text)))
    assert [row["act"] for row in rows] == ["logged in", "audit log exported"]
    assert (rows[0]["username"], rows[0]["position"], len(rows[0]["hash"])) == ("root", "1", 64)
    page = json.loads(admin.get("/admin/audit.json?act=audit log exported").text)
    assert [one["detail"] for one in page] == ["csv: by root", "json: act audit log exported"]
    assert json.loads(admin.get("/admin/audit.json?by=nobody").text) == []
    with app.app_context():
        add_events(1, days_ago=3)
    day = (utc_now() - 3 * DAY).date().isoformat()
    some = admin.get(f"/admin/audit?since={day}&until={day}").text
    assert some.count("192.0.2.1") == 1 and "127.0.0.1" not in some
    assert "is not a date" in admin.get("/admin/audit?since=yesterday").text
    with app.app_context():
        db.session.execute(update(AuditEvent).where(AuditEvent.id == 1).values(address="x"))
        verify_and_note()
        db.session.commit()
    assert "The audit log was tampered with. Event 1" in admin.get("/admin").text
    assert "hemoscan_audit_log_intact 0.0" in app.test_client().get("/metrics", headers=token).text


def test_a_verification_holds_no_lock(app: Flask) -> None:
    with app.app_context():
        add_events(2)
        sealed()
        begun: list[str] = []
        event.listen(
            db.engine,
            "before_cursor_execute",
            lambda *given: begun.append(given[2]) if given[2].startswith("BEGIN") else None,
        )
        verify()
        assert begun and set(begun) == {"BEGIN"}
