"""Notifications: queued with the result that they tell of, and sent at least once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import apprise
import pytest
from flask import Flask
from sqlalchemy import select, update

from tests.plans import statements
from tests.worker.conftest import install_model, picture, submit, wait_for
from tests.worker.sending.test_webhooks import SECRET, Receiver, receiving, status
from webapp.accounts.notifications import queue_notifications, queue_test
from webapp.extensions import database_now, db, utc_now
from webapp.models import (
    Channel,
    JobStatus,
    Notification,
    NotificationChoice,
    Scan,
    User,
    Wanted,
    choose,
)
from worker import leases, tasks
from worker.sending import notifications
from worker.sending.attempts import PAUSE_S
from worker.sending.notifications import KEEP_S, RETRY_S, remove_old_notifications, send_due
from worker.sweep import DOING

NEGATIVE, POSITIVE = 10, 250
TITLE = "Doe, Jane"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What goes through Apprise: to whom, and the lines of the message."""
    messages: list[tuple[str, ...]] = []

    def note(service: apprise.NotifyBase, text: str) -> None:
        to = [address for _, address in getattr(service, "targets", [])]
        messages.append((*to, *text.split("\n")))

    monkeypatch.setattr(notifications, "send_by_apprise", note)
    return messages


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook on this machine that accepts everything."""
    with receiving() as one:
        yield one


def offer(app: Flask, **settings: Any) -> None:
    """Set channels up as an operator does."""
    app.config.update(
        PUBLIC_URL="https://scans.example.org",
        NOTIFY_WEBHOOK_SECRET=SECRET,
        NOTIFY_PRIVATE_ADDRESSES=True,
        **settings,
    )


def want(channel: Channel, wanted: Wanted) -> str:
    """Let Ann choose; return her id."""
    user_id = db.session.scalars(select(User.id)).one()
    choose(user_id, {channel: wanted})
    db.session.commit()
    return user_id


def waiting() -> list[Notification]:
    """Return all notifications as the database has them, the oldest first."""
    return list(
        db.session.scalars(
            select(Notification).order_by(Notification.queued_at, Notification.id),
            execution_options={"populate_existing": True},
        )
    )


def make_due() -> None:
    """Let the time of all retries come."""
    db.session.execute(update(Notification).values(retry_at=None))
    db.session.commit()


@pytest.mark.parametrize(
    ("wanted", "titles"),
    [
        (Wanted.NONE, []),
        (Wanted.SUSPICIOUS, ["positive"]),
        (Wanted.STAT, ["urgent"]),
        (Wanted.ALL, ["negative", "positive", "urgent"]),
    ],
)
def test_who_chose_so_is_notified_of_these_results(
    any_worker_app: Flask, wanted: Wanted, titles: list[str]
) -> None:
    offer(any_worker_app, NOTIFY_CHAT_URL="json://localhost", NOTIFY_EMAIL_URL="")
    install_model()
    want(Channel.CHAT, wanted)
    want(Channel.EMAIL, Wanted.ALL)  # Which is not offered.
    ids = submit(picture(NEGATIVE), picture(POSITIVE), picture(NEGATIVE))
    db.session.execute(update(Scan).where(Scan.id == ids[2]).values(stat=True))
    db.session.commit()
    assert waiting() == []
    tasks.predict_scans()

    names = dict(zip(ids, ("negative", "positive", "urgent"), strict=True))
    assert sorted(names[str(one.scan_id)] for one in waiting()) == titles
    assert {one.channel for one in waiting()} <= {Channel.CHAT}


def test_a_result_that_is_not_written_is_reported_to_nobody(
    worker_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(worker_app, NOTIFY_CHAT_URL="json://localhost")
    install_model()
    want(Channel.CHAT, Wanted.ALL)
    submit(picture(POSITIVE))

    def dies(ids: Any) -> None:
        queue_notifications(ids)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("worker.verdicts.queue_notifications", dies)
        with pytest.raises(MemoryError):
            tasks.predict_scans()
    db.session.rollback()
    assert waiting() == []


def test_many_results_are_queued_in_two_statements(worker_app: Flask) -> None:
    offer(worker_app, NOTIFY_CHAT_URL="json://localhost")
    want(Channel.CHAT, Wanted.ALL)
    ids = submit(*[picture(POSITIVE)] * 5)
    with statements() as made:
        queue_notifications(ids)
    assert len([text for text, _ in made if not text.startswith("BEGIN")]) == 2
    db.session.commit()
    assert len(waiting()) == 5


def test_a_message_holds_a_sentence_and_a_link_and_nothing_of_the_scan(
    worker_app: Flask, receiver: Receiver
) -> None:
    offer(worker_app, NOTIFY_WEBHOOK_URL=receiver.url)
    install_model()
    want(Channel.WEBHOOK, Wanted.ALL)
    (scan_id,) = submit(picture(POSITIVE))
    db.session.execute(update(Scan).values(title=TITLE))
    db.session.commit()
    tasks.predict_scans()
    (notification,) = waiting()
    send_due()

    ((_, headers, body),) = receiver.requests
    assert headers["webhook-id"] == notification.id
    content = json.loads(body)
    assert content.pop("timestamp") == int(headers["webhook-timestamp"])
    assert content == {
        "type": "scan.result",
        "data": {
            "sentence": "A scan in Hemoscan has a result.",
            "url": f"https://scans.example.org/scans/{scan_id}",
        },
    }
    (notification,) = waiting()
    assert (notification.status, notification.error) == (JobStatus.DONE, None)
    send_due()
    assert len(receiver.requests) == 1


def test_email_goes_to_the_address_of_the_account(
    worker_app: Flask, sent: list[tuple[str, ...]]
) -> None:
    offer(worker_app, NOTIFY_EMAIL_URL="mailtos://me:pass@smtp.example.org?from=h@example.org")
    user_id = want(Channel.EMAIL, Wanted.ALL)
    assert queue_test(user_id) == 1
    db.session.commit()
    send_due()
    assert sent == [
        (
            "ann@example.org",
            "This is a test message from Hemoscan.",
            "https://scans.example.org/account",
        )
    ]


def test_a_person_is_notified_of_many_results_in_one_message(
    any_worker_app: Flask, sent: list[tuple[str, ...]]
) -> None:
    offer(any_worker_app, NOTIFY_CHAT_URL="json://localhost")
    install_model()
    want(Channel.CHAT, Wanted.ALL)
    submit(*[picture(POSITIVE)] * 3)
    tasks.predict_scans()
    send_due()
    assert sent == [
        (
            "3 scans in Hemoscan have a result.",
            "https://scans.example.org/scans",
        )
    ]
    assert {one.status for one in waiting()} == {JobStatus.DONE}


def test_a_failure_is_tried_again_ever_later_and_at_last_reported(worker_app: Flask) -> None:
    with receiving(status(503)) as receiver:
        offer(worker_app, NOTIFY_WEBHOOK_URL=receiver.url)
        queue_test(want(Channel.WEBHOOK, Wanted.ALL))
        db.session.commit()
        for tries, wait_s in enumerate(RETRY_S, 1):
            send_due()
            (one,) = waiting()
            assert (one.status, one.tries) == (JobStatus.QUEUED, tries)
            assert one.error == "The webhook responded with status 503."
            now = db.session.scalars(select(database_now())).one()
            assert one.retry_at is not None
            assert (one.retry_at - now).total_seconds() == pytest.approx(wait_s, abs=3)
            make_due()
        send_due()
        (one,) = waiting()
        assert (one.status, one.tries) == (JobStatus.FAILED, len(RETRY_S) + 1)
        assert one.error == "The webhook responded with status 503."
        # Each try said that it is the same message.
        assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1


def test_others_write_while_a_receiver_answers(worker_app: Flask) -> None:
    waited_s: list[float] = []

    def write(_: object) -> None:
        # A transaction of SQLite takes the lock of writers when it begins.
        began = time.monotonic()
        with worker_app.app_context(), db.engine.connect() as other:
            other.exec_driver_sql("SELECT 1")
        waited_s.append(time.monotonic() - began)

    with receiving(write) as receiver:
        offer(worker_app, NOTIFY_WEBHOOK_URL=receiver.url)
        install_model()
        want(Channel.WEBHOOK, Wanted.ALL)
        submit(picture(POSITIVE))
        tasks.predict_scans()
        send_due()
    assert len(waited_s) == 1 and waited_s[0] < 2


def test_a_webhook_that_hangs_holds_no_other_channel_up(
    worker_app: Flask, sent: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "MOST_S", 0.3)
    over = threading.Event()
    with receiving(lambda _: over.wait(20) and None) as receiver:
        offer(worker_app, NOTIFY_WEBHOOK_URL=receiver.url, NOTIFY_CHAT_URL="json://localhost")
        install_model()
        user_id = want(Channel.WEBHOOK, Wanted.ALL)
        submit(*[picture(POSITIVE)] * 5)
        tasks.predict_scans()
        want(Channel.CHAT, Wanted.ALL)
        db.session.add(Notification(user_id=user_id, channel=Channel.CHAT))
        db.session.commit()
        send_due()
        over.set()
        assert len(receiver.requests) == 1
    assert len(sent) == 1
    by_webhook = [one for one in waiting() if one.channel == Channel.WEBHOOK]
    assert {one.status for one in by_webhook} == {JobStatus.QUEUED}
    assert [one.error for one in by_webhook if one.tries] == [
        "There was no response within 0.3 seconds."
    ]
    soon = utc_now().timestamp() + PAUSE_S + 5
    assert all(one.retry_at and one.retry_at.timestamp() < soon for one in by_webhook)


def test_a_worker_that_dies_while_sending_leaves_the_same_message_to_the_next(
    any_worker_app: Flask, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(any_worker_app, NOTIFY_WEBHOOK_URL=receiver.url)
    queue_test(want(Channel.WEBHOOK, Wanted.ALL))
    db.session.commit()

    class Killed(BaseException):
        pass

    def dies(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(leases, "finish", dies)  # After the receiver has accepted.
        with pytest.raises(Killed):
            send_due()
    db.session.rollback()
    assert waiting()[0].status == JobStatus.RUNNING
    db.session.execute(update(Notification).values(lease_expires_at=database_now(-1)))
    leases.reap(Notification, DOING[Notification])
    db.session.commit()
    send_due()

    assert waiting()[0].status == JobStatus.DONE
    ids = [headers["webhook-id"] for _, headers, _ in receiver.requests]
    assert ids == [waiting()[0].id] * 2  # A receiver drops the second.


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        ({"disabled_at": utc_now()}, {}, "The account is disabled."),
        ({"email": None, "email_key": None}, {}, "The account has no email address."),
        ({}, {"NOTIFY_EMAIL_URL": ""}, "This channel is no longer offered."),
        ({}, {"NOTIFY_EMAIL_URL": "nonsense://x"}, "The address that the operator configured"),
    ],
)
def test_what_can_never_be_sent_is_not_tried_again(
    worker_app: Flask, change: dict[str, Any], settings: dict[str, str], sentence: str
) -> None:
    offer(worker_app, NOTIFY_EMAIL_URL="mailto://localhost")
    queue_test(want(Channel.EMAIL, Wanted.ALL))
    if change:
        db.session.execute(update(User).values(**change))
    db.session.commit()
    worker_app.config.update(settings)
    send_due()
    (one,) = waiting()
    assert one.status == JobStatus.FAILED and one.error and one.error.startswith(sentence)


def test_a_webhook_to_a_private_address_is_refused_unless_the_operator_allows_it(
    worker_app: Flask, receiver: Receiver
) -> None:
    offer(worker_app, NOTIFY_WEBHOOK_URL=receiver.url)
    worker_app.config["NOTIFY_PRIVATE_ADDRESSES"] = False
    queue_test(want(Channel.WEBHOOK, Wanted.ALL))
    db.session.commit()
    send_due()
    assert receiver.requests == []
    assert (
        waiting()[0].error == "The webhook points to a private address, which is not allowed here."
    )
    assert waiting()[0].status == JobStatus.FAILED


def test_apprise_calls_the_operators_service(worker_app: Flask, receiver: Receiver) -> None:
    address = receiver.url.replace("http://", "json://").partition("?")[0]
    offer(worker_app, NOTIFY_CHAT_URL=address)
    queue_test(want(Channel.CHAT, Wanted.ALL))
    db.session.commit()
    send_due()
    ((path, _, body),) = receiver.requests
    content = json.loads(body)
    assert path == "/hook" and content["title"] == "Hemoscan"
    assert "https://scans.example.org/account" in content["message"]
    assert waiting()[0].status == JobStatus.DONE


def test_a_sweep_starts_sending_in_the_background(worker_app: Flask, receiver: Receiver) -> None:
    offer(worker_app, NOTIFY_WEBHOOK_URL=receiver.url)
    queue_test(want(Channel.WEBHOOK, Wanted.ALL))
    db.session.commit()
    tasks.sweep()
    wait_for(lambda: receiver.requests)
    wait_for(lambda: not notifications._sending.locked())
    assert waiting()[0].status == JobStatus.DONE


def test_old_messages_go_and_waiting_ones_stay(worker_app: Flask) -> None:
    user_id = want(Channel.CHAT, Wanted.ALL)
    old = database_now(-KEEP_S - 60)
    columns = {"user_id": user_id, "channel": Channel.CHAT}
    db.session.add_all(
        [
            Notification(**columns, status=JobStatus.DONE, finished_at=old),
            Notification(**columns, status=JobStatus.FAILED, finished_at=database_now(-60)),
            Notification(**columns, queued_at=old),
        ]
    )
    db.session.commit()
    remove_old_notifications()
    assert {one.status for one in waiting()} == {JobStatus.FAILED, JobStatus.QUEUED}
    assert db.session.scalars(select(NotificationChoice.wanted)).all() == [Wanted.ALL]
