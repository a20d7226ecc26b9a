"""Who owns a queued row, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import insert, select, text, update

from tests.conftest import app_on, make_user
from tests.plans import rows_touched, statements
from webapp.extensions import database_now, db
from webapp.models import Attempt, JobStatus, Scan, TrainingRun, User, cancel, retry
from worker import leases


def queue(count: int = 1, username: str = "ann", *, stat: bool = False) -> list[str]:
    """Queue scans of a person without a file, oldest first; return their ids."""
    user_id = db.session.scalar(select(User.id).where(User.username == username))
    ids = []
    for _ in range(count):
        scan = Scan(user_id=user_id, kind="png", original_key="x", stat=stat)
        db.session.add(scan)
        db.session.flush()
        ids.append(scan.id)
    db.session.commit()
    return ids


def claim(owner: str, limit: int = 8) -> list[str]:
    """Claim scans and commit; return their ids."""
    scans = leases.claim(Scan, owner, limit)
    db.session.commit()
    return [scan.id for scan in scans]


def expire(ids: Sequence[str], table: type[Scan] | type[TrainingRun] = Scan) -> None:
    """Let the leases of these rows run out."""
    db.session.execute(
        update(table).where(table.id.in_(ids)).values(lease_expires_at=database_now(-1))
    )
    db.session.commit()


def reap() -> dict[str, JobStatus]:
    """Reap scans and commit."""
    reaped = leases.reap(Scan, "was analyzing this scan")
    db.session.commit()
    return reaped


def row(scan_id: str) -> Scan:
    """Return a scan as the database has it."""
    scan = db.session.get_one(Scan, scan_id, populate_existing=True)
    db.session.commit()
    return scan


def test_a_claim_takes_the_oldest_rows_and_leases_them(any_worker_app: Flask) -> None:
    ids = queue(5)
    claimed = leases.claim(Scan, "one", 3)
    db.session.commit()
    assert [scan.id for scan in claimed] == ids[:3]
    assert all(
        scan.status == "running" and scan.lease_owner == "one" and scan.started_at
        for scan in claimed
    )
    ahead_s = db.session.scalar(
        select(Scan.lease_expires_at).where(Scan.id == ids[0])
    ) - db.session.scalar(select(database_now()))
    assert 15 < ahead_s.total_seconds() <= 20
    assert claim("two") == ids[3:]
    assert claim("three") == []


def test_people_take_turns_however_many_scans_one_has(any_worker_app: Flask) -> None:
    make_user(any_worker_app, "bob")
    make_user(any_worker_app, "cy")
    many = queue(20)
    one, two = queue(1, "bob"), queue(2, "cy")
    # Each one's oldest, then the oldest of the second ones; by age.
    assert claim("first", 4) == [many[0], many[1], *one, two[0]]
    assert claim("second", 2) == [many[2], two[1]]
    (late,) = queue(1, "bob")
    assert claim("third", 1) == [late]


def test_a_single_scan_waits_for_one_batch_of_anothers_fifty(any_worker_app: Flask) -> None:
    make_user(any_worker_app, "bob")
    many = queue(50)
    assert claim("first") == many[:8]
    single = queue(1, "bob")
    assert claim("second") == [*many[8:15], *single]


def test_whoever_has_most_at_work_waits_for_the_others(any_worker_app: Flask) -> None:
    make_user(any_worker_app, "bob")
    many = queue(12)
    assert claim("first", 8) == many[:8]
    theirs = queue(3, "bob")
    assert claim("second", 3) == theirs
    assert claim("third") == many[8:]


def test_urgent_scans_go_before_all_others_in_turns_of_their_own(any_worker_app: Flask) -> None:
    make_user(any_worker_app, "bob")
    ordinary = queue(3)
    urgent, theirs = queue(3, stat=True), queue(1, "bob", stat=True)
    assert claim("first", 3) == [urgent[0], urgent[1], *theirs]
    assert claim("second") == [*ordinary, urgent[2]]  # Told by age; all four fit in.
    (late,) = queue(1, "bob", stat=True)
    more = queue(2)
    assert claim("third", 1) == [late]
    assert claim("fourth") == more


def test_what_is_queued_again_waits_from_then_on(any_worker_app: Flask) -> None:
    old, young = queue(2)
    cancel(Scan, Scan.id == old)
    retry(old)
    db.session.commit()
    assert row(old).queued_at > row(young).queued_at
    assert claim("one") == [young, old]


def test_a_claim_among_ten_thousand_queued_rows_looks_at_a_few_of_each_person(
    postgres_url: str, tmp_path: Path
) -> None:
    app = app_on(postgres_url, tmp_path)
    people = [make_user(app, name) for name in ("bob", "cy")]
    with app.app_context():
        rows = [
            {"user_id": people[number % 100 == 0], "kind": "png", "original_key": "x"}
            for number in range(10_000)
        ]
        db.session.execute(insert(Scan), rows)
        # No ANALYZE: the planner knows nothing of them, as after a sudden rush.
        db.session.commit()
        with statements() as sent:
            assert len(claim("worker")) == 8
        touched = rows_touched(sent[0])
        db.session.remove()
        db.engine.dispose()
    assert 8 < touched < 2_000


def test_a_claim_passes_over_what_another_has_just_taken(postgres_url: str, tmp_path: Path) -> None:
    app = app_on(postgres_url, tmp_path)
    for name in ("ann", "bob"):
        make_user(app, name)
    with app.app_context():
        many, single = queue(20), queue(1, "bob")
        assert [scan.id for scan in leases.claim(Scan, "first", 4)] == [*many[:3], *single]
        with app.app_context():
            assert claim("second", 4) == many[3:7]
        db.session.commit()
        db.session.remove()
        db.engine.dispose()


def test_what_a_scan_went_through_is_kept_when_it_is_asked_for_again(any_worker_app: Flask) -> None:
    (scan_id,) = queue()
    claim("one")
    expire([scan_id])
    reap()
    claim("two")
    leases.fail(Scan, "two", {scan_id: "The file is empty."})
    db.session.commit()
    assert retry(scan_id)
    db.session.commit()
    assert not retry(scan_id)
    cancel(Scan, Scan.id == scan_id)
    assert retry(scan_id)
    db.session.commit()
    history = row(scan_id).history
    assert [attempt.outcome for attempt in history] == [
        leases.LOST,
        "The file is empty.",
        "Canceled",
    ]
    assert [attempt.started_at is not None for attempt in history] == [True, True, False]
    assert all(attempt.started_at <= attempt.ended_at for attempt in history if attempt.started_at)
    db.session.delete(row(scan_id))
    db.session.commit()
    assert db.session.scalars(select(Attempt)).all() == []


def test_a_finished_row_is_not_claimed_again(any_worker_app: Flask) -> None:
    (scan_id,) = queue()
    claim("one")
    assert leases.finish(Scan, "one", [scan_id], image_key="images/1.png") == {scan_id}
    db.session.commit()
    done = row(scan_id)
    assert (
        done.status,
        done.progress,
        done.image_key,
        done.lease_owner,
        done.lease_expires_at,
    ) == (
        "done",
        1.0,
        "images/1.png",
        None,
        None,
    )
    assert done.finished_at is not None
    assert claim("two") == []


def test_each_row_fails_with_its_own_sentence(any_worker_app: Flask) -> None:
    first, second, third = queue(3)
    claim("one")
    assert leases.fail(Scan, "one", {first: "It is blank.", second: "It is too small."}) == {
        first,
        second,
    }
    db.session.commit()
    assert [row(scan_id).error for scan_id in (first, second, third)] == [
        "It is blank.",
        "It is too small.",
        None,
    ]
    assert [row(scan_id).status for scan_id in (first, second, third)] == [
        "failed",
        "failed",
        "running",
    ]


def test_nothing_is_written_after_the_lease_was_lost(any_worker_app: Flask) -> None:
    (scan_id,) = queue()
    claim("one")
    expire([scan_id])
    reap()
    for losing in (
        lambda: leases.finish(Scan, "one", [scan_id]),
        lambda: leases.fail(Scan, "one", {scan_id: "Too late."}),
        lambda: leases.renew(Scan, "one", [scan_id]),
        lambda: leases.hand_back(Scan, "one", [scan_id]),
        lambda: leases.write(Scan, "one", [scan_id], progress=0.5),
    ):
        assert losing() == frozenset()
    db.session.commit()
    assert row(scan_id).status == "queued"
    assert claim("two") == [scan_id]
    assert leases.finish(Scan, "one", [scan_id]) == frozenset()
    db.session.commit()
    assert (row(scan_id).status, row(scan_id).lease_owner) == ("running", "two")


def test_a_lease_that_was_renewed_is_not_reaped(any_worker_app: Flask) -> None:
    (scan_id,) = queue()
    claim("one")
    expire([scan_id])
    assert leases.renew(Scan, "one", [scan_id]) == {scan_id}
    db.session.commit()
    assert reap() == {}


def test_a_row_that_a_halted_worker_has_locked_holds_no_other_up(
    postgres_url: str, tmp_path: Path
) -> None:
    app = app_on(postgres_url, tmp_path)
    make_user(app, "ann")
    with app.app_context():
        ids = queue(2)
        claim("a")
        expire(ids)
        with db.engine.connect() as halted:
            halted.execute(select(Scan.id).where(Scan.id == ids[0]).with_for_update())
            db.session.execute(text("SET LOCAL lock_timeout = '2s'"))
            assert reap() == {ids[1]: "queued"}
        assert reap() == {ids[0]: "queued"}
        db.session.remove()
        db.engine.dispose()


def test_handing_back_keeps_the_place_and_is_no_attempt(any_worker_app: Flask) -> None:
    ids = queue(2)
    assert claim("one", limit=1) == ids[:1]
    assert leases.hand_back(Scan, "one", ids[:1]) == {ids[0]}
    db.session.commit()
    assert row(ids[0]).attempts == 0
    assert claim("two") == ids


def test_rows_whose_batch_died_are_claimed_alone_in_their_turn(any_worker_app: Flask) -> None:
    first, second, third = queue(3)
    claim("one", limit=2)
    expire([first, second])
    assert reap() == {first: JobStatus.QUEUED, second: JobStatus.QUEUED}
    assert claim("two") == [first]
    assert claim("three") == [second]
    assert claim("four") == [third]


def test_a_suspect_that_waits_behind_fresh_rows_is_not_in_their_batch(
    any_worker_app: Flask,
) -> None:
    first, second, third = queue(3)
    db.session.execute(update(Scan).where(Scan.id == second).values(attempts=1))
    db.session.commit()
    assert claim("one") == [first, third]
    assert claim("two") == [second]


def test_the_third_death_while_alone_is_the_last(any_worker_app: Flask) -> None:
    poisoned, innocent = queue(2)
    claim("batch")
    expire([poisoned, innocent])
    reap()
    for death in (1, 2):
        assert claim(f"alone {death}") == [poisoned]
        expire([poisoned])
        assert reap() == {poisoned: JobStatus.QUEUED}
    assert claim("the last") == [poisoned]
    expire([poisoned])
    assert reap() == {poisoned: JobStatus.FAILED}
    failed = row(poisoned)
    assert failed.error == "The worker stopped three times while it was analyzing this scan."
    assert (failed.attempts, failed.counted_deaths) == (4, 3)
    assert failed.finished_at is not None
    assert claim("another") == [innocent]
    assert row(innocent).counted_deaths == 0


def test_a_death_after_a_new_checkpoint_does_not_count(any_worker_app: Flask) -> None:
    run = TrainingRun(architecture="alexnet_svm", settings={}, initial_weights="random", seed=1)
    db.session.add(run)
    db.session.commit()
    for number in range(5):
        leases.claim(TrainingRun, f"worker {number}")
        leases.write(TrainingRun, f"worker {number}", [run.id], death_counts=False)
        expire([run.id], TrainingRun)
        assert leases.reap(TrainingRun, "trained") == {run.id: JobStatus.QUEUED}
        db.session.commit()
    for expected in (JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED):
        leases.claim(TrainingRun, "worker")
        expire([run.id], TrainingRun)
        assert leases.reap(TrainingRun, "trained") == {run.id: expected}
        db.session.commit()


@pytest.mark.parametrize("died_before", [False, True])
def test_two_claimers_never_share_a_row(any_worker_app: Flask, died_before: bool) -> None:
    ids = queue(60)
    if died_before:
        db.session.execute(update(Scan).where(Scan.id.in_(ids[::2])).values(attempts=1))
        db.session.commit()
    taken: dict[str, list[str]] = {}
    together = threading.Barrier(4)

    def claim_all(owner: str) -> None:
        mine = taken.setdefault(owner, [])
        with any_worker_app.app_context():
            together.wait()
            # Rows that another claim has locked are skipped, so an empty claim is no end while some
            # are queued.
            while db.session.scalar(
                select(Scan.id).where(Scan.status == JobStatus.QUEUED).limit(1)
            ):
                db.session.commit()
                mine += claim(owner, limit=7)

    threads = [
        threading.Thread(target=claim_all, args=(f"worker {number}",)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scan_id for mine in taken.values() for scan_id in mine) == sorted(ids)
