"""Opinions on scans and slices, sharing, and the review queue."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from markupsafe import escape
from sqlalchemy import func, select

from tests.conftest import PASSWORD, make_user
from tests.webapp.scans.test_scans import add_verdict
from tests.webapp.test_api import make_token, problem_of
from webapp.deletion import delete_account
from webapp.extensions import db
from webapp.models import (
    AuditEvent,
    Finding,
    JobStatus,
    ModelVersion,
    Opinion,
    Prediction,
    Role,
    Scan,
    Share,
    User,
    new_id,
    score_again,
)
from webapp.review.opinions import (
    NewOpinion,
    OpinionRefused,
    ScanGone,
    consensus_of,
    give,
    opinions_of,
)
from webapp.review.queue import next_in_queue, queue_of, sampling_of

LogIn = Callable[..., FlaskClient]
HOSTILE = "<script>alert(1)</script>"


def add_done(
    app: Flask, username: str = "ann", *, state: str = "suspected", slices: int = 1, **columns: Any
) -> str:
    """Add a scan of that person with a verdict in that state; return its id."""
    with app.app_context():
        user_id = db.session.scalars(select(User.id).where(User.username == username)).one()
        version = db.session.scalar(select(ModelVersion).limit(1)) or ModelVersion(
            card_id="card", architecture="x", reads="slice", storage_prefix="models/x", card={}
        )
        probability = {"suspected": 0.9, "inconclusive": 0.55, "not found": 0.1}[state]
        scan = Scan(
            **{"id": new_id(), "title": "mine", **columns},
            user_id=user_id,
            kind="png",
            original_key="originals/none.png",
            status=JobStatus.DONE,
            verdict_state=state,
            risk=probability,
            margin=abs(probability - 0.5),
            slice_count=slices,
        )
        scan.prediction = Prediction(
            model_version=version,
            probability=probability,
            threshold=0.5,
            positive=probability >= 0.5,
            uncertain=state == "inconclusive",
            warnings=[],
            slices=[probability] * slices,
            seconds=0.1,
        )
        db.session.add(scan)
        db.session.commit()
        return scan.id


def share_with_reviewers(app: Flask, *scan_ids: str) -> None:
    """Share scans with the reviewers."""
    with app.app_context():
        db.session.add_all(Share(scan_id=scan_id) for scan_id in scan_ids)
        db.session.commit()


def say(app: Flask, scan_id: str, username: str, finding: Finding, **more: Any) -> None:
    """Give somebody's opinion on a scan they see."""
    with app.app_context():
        author = db.session.scalars(select(User.id).where(User.username == username)).one()
        from_queue = more.pop("from_queue", False)
        give(scan_id, author, NewOpinion(finding, **more), from_queue=from_queue)
        db.session.commit()


def acts(app: Flask, scan_id: str) -> list[tuple[str, str | None]]:
    """Return what was done to a scan, with details, in order."""
    with app.app_context():
        events = select(AuditEvent).where(AuditEvent.object_id == scan_id).order_by(AuditEvent.id)
        return [(event.act, event.detail) for event in db.session.scalars(events)]


@pytest.fixture
def ann(logged_in: LogIn) -> FlaskClient:
    """Ann's browser."""
    return logged_in("ann")


class TestGiving:
    def test_nobody_agrees_or_disagrees_with_an_inconclusive_answer(
        self, app: Flask, ann: FlaskClient
    ) -> None:
        scan_id = add_done(app, state="inconclusive")
        ann.post(f"/scans/{scan_id}/opinions", data={"finding": "absent"})
        page = ann.get(f"/scans/{scan_id}").text
        assert "agrees with" not in page and "(agree)" not in page
        assert re.search(r'value="present"[^>]* title="Key Y"', page)
        with app.app_context():
            assert db.session.scalars(select(Opinion)).one().agrees is None

    def test_agreement_is_with_the_result_that_the_scan_has_now(
        self, app: Flask, ann: FlaskClient
    ) -> None:
        scan_id = add_done(app)
        path, api = f"/scans/{scan_id}/opinions", app.test_client()
        with app.app_context():
            user_id = db.session.scalars(select(User.id)).one()
        api.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {make_token(app, user_id)}"
        ann.post(path, data={"finding": "present"})

        def exported() -> tuple[object, object, object]:
            (opinion,) = api.get(f"/api/v1{path}").json["items"]  # type: ignore[index]
            return opinion["agrees"], opinion["model_positive"], opinion["model_probability"]

        assert exported() == (True, True, 0.9)
        with app.app_context():
            assert score_again(scan_id)
            db.session.commit()
        assert exported() == (None, True, 0.9)
        add_verdict(app, scan_id, probability=0.1, positive=False)
        assert exported() == (False, True, 0.9)
        assert "disagrees with the model" in ann.get(f"/scans/{scan_id}").text
        ann.post(path, data={"finding": "present"})  # The same, of the new result.
        assert exported() == (False, False, 0.1)

    def test_an_owner_agrees_changes_it_and_withdraws_it(
        self, app: Flask, ann: FlaskClient
    ) -> None:
        scan_id = add_done(app, slices=3)
        path = f"/scans/{scan_id}/opinions"
        assert ann.post(path, data={"finding": "present"}).status_code == 302
        page = ann.get(f"/scans/{scan_id}").text
        assert "agrees with the model" in page and "Confirmed" in page
        corrected = {"finding": "absent", "comment": "  A vessel.\r\nNot blood.  "}
        ann.post(path, data=corrected)
        with app.app_context():
            opinion = db.session.scalars(select(Opinion)).one()
            assert opinion.comment == "A vessel.\nNot blood."
            assert opinion.agrees is False and opinion.model_probability == 0.9
        ann.post(f"{path}/{opinion.id}/withdraw")
        assert acts(app, scan_id) == [
            ("opinion given", "scan: present"),
            ("opinion changed", "scan: present → absent; comment"),
            ("opinion withdrawn", "scan: absent"),
        ]
        with app.app_context():
            assert db.session.scalar(select(func.count()).select_from(Opinion)) == 0

    def test_a_script_gets_the_panel_and_a_sentence(self, app: Flask, ann: FlaskClient) -> None:
        scan_id = add_done(app, slices=3)
        path, json = f"/scans/{scan_id}/opinions", {"Accept": "application/json"}
        saved = ann.post(path, data={"finding": "absent", "slice": "2"}, headers=json)
        assert saved.status_code == 200 and saved.json
        assert saved.json["message"] == "Saved: no hemorrhage in slice 2."
        assert saved.json["panel"].lstrip().startswith("<section")
        refused = ann.post(path, data={"finding": "present", "slice": "9"}, headers=json)
        assert refused.status_code == 400 and refused.json
        assert "numbered from 1 to 3" in refused.json["panel"] and "message" not in refused.json
        ann.post(f"/scans/{scan_id}/delete")
        assert "deleted" in ann.get("/scans").text
        gone = ann.post(path, data={"finding": "present"}, headers=json)
        assert gone.status_code == 404 and gone.json
        assert "Your opinion was not saved" in gone.json["detail"]
        assert 'class="messages"' not in ann.get("/scans").text  # Nothing is told twice.

    def test_the_buttons_change_the_finding_alone(self, app: Flask, ann: FlaskClient) -> None:
        scan_id = add_done(app)
        path = f"/scans/{scan_id}/opinions"
        full = {"finding": "present", "types": "subdural", "comment": "left frontal"}
        ann.post(path, data={**full, "region": "0.5,0.5,0.1,0.1"})
        for finding, types in (("present", ["subdural"]), ("absent", [])):
            ann.post(path, data={"finding": finding})
            with app.app_context():
                opinion = db.session.scalars(select(Opinion)).one()
                assert (opinion.finding, opinion.types) == (finding, types)
                assert opinion.comment == "left frontal" and opinion.region is not None

    def test_a_slice_has_an_opinion_of_its_own_with_types_and_an_ellipse_in_numbers(
        self, app: Flask, ann: FlaskClient
    ) -> None:
        scan_id = add_done(app, slices=3)
        given = {"finding": "present", "slice": "2", "types": ["subdural", "epidural"]}
        region = {"region": "0.5,0.25,0.1,0.05"}
        assert ann.post(f"/scans/{scan_id}/opinions", data=given | region).status_code == 302
        ann.post(f"/scans/{scan_id}/opinions", data={"finding": "absent"})
        with app.app_context():
            scan = db.session.get_one(Scan, scan_id)
            of_scan, of_slice = opinions_of(scan)
            assert of_scan.slice_index is None and of_slice.slice_index == 1
            assert of_slice.types == ["epidural", "subdural"]
            assert of_slice.region == {"x": 0.5, "y": 0.25, "rx": 0.1, "ry": 0.05}
            assert consensus_of([of_scan, of_slice]).finding == Finding.ABSENT

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({}, "Please choose whether hemorrhage is present."),
            ({"finding": "perhaps"}, "Please choose whether hemorrhage is present."),
            ({"finding": "present", "slice": "4"}, "numbered from 1 to 3"),
            ({"finding": "present", "slice": "0"}, "numbered from 1 to 3"),
            ({"finding": "absent", "types": "subdural"}, "only if hemorrhage is present"),
            ({"finding": "present", "types": "bruise"}, "not a valid choice"),
            ({"finding": "present", "comment": "x" * 1001}, "at most 1000 characters"),
            ({"finding": "present", "region": "0.5,0.5,0.1,0.1"}, "Please choose the slice"),
            ({"finding": "present", "slice": "1", "region": "2,0,1,1"}, "outside the image"),
            ({"finding": "present", "slice": "1", "region": "nan,0,1,1"}, "not four numbers"),
        ],
    )
    def test_what_makes_no_sense_is_refused_in_a_sentence_and_what_was_typed_stays(
        self, app: Flask, ann: FlaskClient, given: dict[str, str], sentence: str
    ) -> None:
        scan_id = add_done(app, slices=3)
        typed = {"comment": "Keep me."} | given
        answer = ann.post(f"/scans/{scan_id}/opinions", data=typed)
        assert answer.status_code == 400 and sentence in answer.text
        assert typed["comment"] in answer.text
        assert acts(app, scan_id) == []

    def test_a_comment_with_markup_is_shown_as_text(self, app: Flask, ann: FlaskClient) -> None:
        scan_id = add_done(app)
        ann.post(f"/scans/{scan_id}/opinions", data={"finding": "present", "comment": HOSTILE})
        page = ann.get(f"/scans/{scan_id}").text
        assert HOSTILE not in page and "&lt;script&gt;" in page

    def test_an_opinion_on_a_scan_deleted_meanwhile_is_refused_in_a_sentence(
        self, app: Flask, ann: FlaskClient
    ) -> None:
        scan_id = add_done(app)
        ann.post(f"/scans/{scan_id}/delete")
        answer = ann.post(f"/scans/{scan_id}/opinions", data={"finding": "present"})
        assert answer.status_code == 404 and "was deleted or is no longer shared" in answer.text

    def test_a_scan_without_a_result_takes_no_opinion(self, app: Flask, ann: FlaskClient) -> None:
        scan_id = add_done(app)
        with app.app_context():
            db.session.delete(db.session.scalars(select(Prediction)).one())
            db.session.commit()
            author = db.session.scalars(select(User.id)).one()
            with pytest.raises(OpinionRefused, match="once the scan has a result"):
                give(scan_id, author, NewOpinion(Finding.PRESENT))
        assert "You can give an opinion once" in ann.get(f"/scans/{scan_id}").text


class TestSharing:
    def test_a_person_sees_it_by_name_until_it_is_taken_back(
        self, app: Flask, ann: FlaskClient, logged_in: LogIn
    ) -> None:
        scan_id, bob = add_done(app), logged_in("bob")
        assert bob.get(f"/scans/{scan_id}").status_code == 404
        assert ann.post(f"/scans/{scan_id}/shares", data={"username": "BOB"}).status_code == 302
        page = bob.get(f"/scans/{scan_id}").text
        assert "Submitted by" in page and "Stop sharing" not in page and "Delete" not in page
        assert bob.post(f"/scans/{scan_id}/opinions", data={"finding": "absent"}).status_code == 302
        for act in ("delete", "cancel", "retry", "shares"):
            assert bob.post(f"/scans/{scan_id}/{act}").status_code == 404
        with app.app_context():
            share = db.session.scalars(select(Share)).one()
            whom = share.with_user_id
        ann.post(f"/scans/{scan_id}/shares/{share.id}/end")
        assert bob.get(f"/scans/{scan_id}").status_code == 404
        refused = bob.post(f"/scans/{scan_id}/opinions", data={"finding": "present"})
        assert refused.status_code == 404 and "no longer shared with you" in refused.text
        page = ann.get(f"/scans/{scan_id}").text
        assert "bob" in page and "disagrees with the model" in page
        done = acts(app, scan_id)
        assert ("scan shared", f"with {whom}") in done
        assert ("sharing ended", f"with {whom}") in done

    def test_names_that_do_not_help_are_refused_in_a_sentence(
        self, app: Flask, ann: FlaskClient
    ) -> None:
        scan_id = add_done(app)
        make_user(app, "bob")
        for name, sentence in (
            ("nobody", "There is no user named “nobody”."),
            (HOSTILE[:30], "There is no user named"),
            ("", "Please enter a username."),
            ("ann", "already yours"),
        ):
            answer = ann.post(f"/scans/{scan_id}/shares", data={"username": name})
            assert answer.status_code == 400 and sentence in answer.text
            assert HOSTILE[:30] not in answer.text
            # What was typed is kept, and the sentence stands beside the field, once.
            assert f'value="{escape(name)}"' in answer.text
            assert '<details class="sharing" open>' in answer.text
            assert (
                answer.text.count('id="username-error"') == 1
                and 'class="messages"' not in answer.text
            )
        ann.post(f"/scans/{scan_id}/shares", data={"username": "bob"})
        again = ann.post(f"/scans/{scan_id}/shares", data={"username": "bob"})
        assert "already shared with bob" in again.text

    def test_the_reviewers_see_it_and_a_user_made_reviewer_by_an_admin_too(
        self, app: Flask, ann: FlaskClient, logged_in: LogIn
    ) -> None:
        scan_id, bob, root = add_done(app), logged_in("bob"), logged_in("root", Role.ADMIN)
        ann.post("/scans/selected", data={"action": "share", "id": scan_id})
        assert bob.get(f"/scans/{scan_id}").status_code == 404
        with app.app_context():
            bob_id = db.session.scalars(select(User.id).where(User.username == "bob")).one()
        assert root.post(f"/admin/users/{bob_id}/role", data={"role": "chief"}).status_code == 400
        root.post(f"/admin/users/{bob_id}/role", data={"role": "reviewer"})
        assert acts(app, bob_id)[-1] == ("role changed", "user → reviewer")
        assert bob.get(f"/scans/{scan_id}").status_code == 200
        root.post(f"/admin/users/{bob_id}/role", data={"role": "user"})
        assert bob.get(f"/scans/{scan_id}").status_code == 404

    def test_the_worklist_shows_what_is_shared_by_submitter(
        self, app: Flask, ann: FlaskClient, logged_in: LogIn
    ) -> None:
        eve = logged_in("eve", Role.REVIEWER)
        logged_in("bob")
        add_done(app, "eve", title="of eve")
        add_done(app, "ann", title="secret")
        shared = [add_done(app, "ann", title="of ann"), add_done(app, "bob", title="of bob")]
        share_with_reviewers(app, *shared)
        own, others = eve.get("/scans").text, eve.get("/scans?whose=shared").text
        assert "of eve" in own and "of ann" not in own
        assert "of ann" in others and "of bob" in others
        assert "of eve" not in others and "secret" not in others and "Submitter" in others
        of_bob = eve.get("/scans?whose=shared&submitter=BO").text
        assert "of bob" in of_bob and "of ann" not in of_bob
        # A reader of shared scans walks among these, and marks none of them as read.
        assert f'href="/scans/{shared[1]}?whose=shared"' in eve.get(f"/scans/{shared[0]}").text
        with app.app_context():
            assert db.session.get_one(Scan, shared[0]).opened_at is None
        deleted = eve.post("/scans/selected/delete", data={"id": shared})
        assert deleted.status_code == 302
        assert shared[0] in eve.post("/scans/selected", data={"action": "csv", "id": shared}).text


class TestTogether:
    def test_two_reviewers_at_once_keep_both_opinions_and_the_third_decides(
        self, app: Flask, ann: FlaskClient
    ) -> None:
        scan_id = add_done(app)
        for name in ("bob", "eve", "kim"):
            make_user(app, name, Role.REVIEWER)
        share_with_reviewers(app, scan_id)
        say(app, scan_id, "bob", Finding.PRESENT)
        say(app, scan_id, "eve", Finding.ABSENT)
        assert "Readers disagree" in ann.get(f"/scans/{scan_id}").text
        say(app, scan_id, "kim", Finding.PRESENT)
        page = ann.get(f"/scans/{scan_id}").text
        assert "Confirmed" in page and "by 2 of 3" in page

    def test_deleting_a_scan_or_an_account_takes_opinions_and_shares_along(
        self, any_database_app: Flask
    ) -> None:
        app = any_database_app
        for name in ("ann", "bob"):
            make_user(app, name, Role.REVIEWER)
        mine, others = add_done(app, "ann"), add_done(app, "bob")
        share_with_reviewers(app, mine, others)
        say(app, mine, "bob", Finding.PRESENT)
        say(app, others, "ann", Finding.ABSENT)
        say(app, others, "bob", Finding.ABSENT)
        with app.app_context():
            ann_id = db.session.scalars(select(User.id).where(User.username == "ann")).one()
            db.session.add(User(username="root", password=PASSWORD, role=Role.ADMIN))
            db.session.commit()
            delete_account(ann_id)
            (left,) = db.session.scalars(select(Opinion))
            assert left.scan_id == others and left.author.username == "bob"
            assert [one.scan_id for one in db.session.scalars(select(Share))] == [others]
            with pytest.raises(ScanGone):
                give(others, ann_id, NewOpinion(Finding.PRESENT))


class TestReviewQueue:
    @pytest.fixture
    def app_with_queue(self, any_database_app: Flask) -> tuple[Flask, dict[str, str]]:
        """Ann's scans, shared with the reviewers bob and eve; ids tell the random share."""
        app = any_database_app
        make_user(app, "ann")
        for name in ("bob", "eve"):
            make_user(app, name, Role.REVIEWER)
        ids = {
            "usual": ("f" * 32, "not found"),
            "drawn": ("0" * 31 + "1", "not found"),
            "uncertain": ("f" * 31 + "0", "inconclusive"),
            "drawn too": ("0" * 31 + "2", "suspected"),
            "disputed": ("f" * 30 + "00", "suspected"),
        }
        for title, (scan_id, state) in ids.items():
            add_done(app, state=state, id=scan_id, title=title)
        share_with_reviewers(app, *(scan_id for scan_id, _ in ids.values()))
        add_done(app, state="inconclusive", title="not shared")
        say(app, ids["disputed"][0], "bob", Finding.ABSENT)
        return app, {title: scan_id for title, (scan_id, _) in ids.items()}

    def test_uncertain_ones_come_first_then_disagreements_then_a_random_share(
        self, app_with_queue: tuple[Flask, dict[str, str]]
    ) -> None:
        app, _ = app_with_queue
        with app.app_context():
            people = {user.username: user.id for user in db.session.scalars(select(User))}
            queue = [(due.scan.title, due.reason) for due in queue_of(people["eve"], 10)]
            assert queue == [
                ("uncertain", "uncertain"),
                ("disputed", "disagreement"),
                ("drawn", "random share"),
                ("drawn too", "random share"),
            ]
            assert "disputed" not in [due.scan.title for due in queue_of(people["bob"], 10)]

    def test_the_probability_of_the_draw_is_kept_where_the_queue_led_to_the_scan(
        self, app_with_queue: tuple[Flask, dict[str, str]]
    ) -> None:
        app, ids = app_with_queue
        with app.app_context():
            scans = {scan.title: scan for scan in db.session.scalars(select(Scan))}
            chances = {title: sampling_of(ids[title], scans[title].verdict_state) for title in ids}
            assert chances == {
                "usual": None, "drawn": 0.1, "uncertain": 1.0, "drawn too": 0.1, "disputed": None,
            }  # fmt: skip
        say(app, ids["drawn"], "eve", Finding.ABSENT, from_queue=True)
        say(app, ids["drawn too"], "eve", Finding.PRESENT)
        say(app, ids["usual"], "ann", Finding.ABSENT, from_queue=True)
        with app.app_context():
            sampling = {one.scan.title: one.sampling for one in db.session.scalars(select(Opinion))}
        assert sampling == {"disputed": None, "drawn": 0.1, "drawn too": None, "usual": None}

    def test_only_a_reviewer_whom_the_queue_offers_a_scan_is_led_there_by_it(
        self, app_with_queue: tuple[Flask, dict[str, str]]
    ) -> None:
        app, ids = app_with_queue
        with app.app_context():
            make_user(app, "mia")
            people = {user.username: user.id for user in db.session.scalars(select(User))}
            shares = [Share(scan_id=each, with_user_id=people["mia"]) for each in ids.values()]
            db.session.add_all(shares)
            db.session.commit()
        for name, title, sampling in (
            ("mia", "uncertain", None),  # No reviewer, whom ann shared it with.
            ("eve", "uncertain", None),  # Somebody decided meanwhile.
            ("eve", "disputed", None),  # Offered, but not for a first opinion.
            ("eve", "usual", None),
            ("eve", "drawn", 0.1),
        ):
            given = {"finding": "present", "from_queue": True}
            client = api_client_of(app, people[name])
            made = client.put(f"/api/v1/scans/{ids[title]}/opinions", json=given)
            assert made.json is not None and made.json["sampling"] == sampling, (name, title)

    def test_a_reviewer_goes_from_one_to_the_next(
        self, app_with_queue: tuple[Flask, dict[str, str]]
    ) -> None:
        app, ids = app_with_queue
        eve = app.test_client()
        eve.post("/login", data={"username": "eve", "password": PASSWORD})
        assert re.search(r"4\s+scans to read", eve.get("/review").text)
        start = eve.get("/review/next")
        assert start.location == f"/scans/{ids['uncertain']}?queue=1"
        for title, beside in (
            ("uncertain", {"next": "disputed"}),
            ("disputed", {"prev": "uncertain", "next": "drawn"}),
            ("usual", {"next": "uncertain"}),  # Not in the queue.
        ):
            page = eve.get(f"/scans/{ids[title]}?queue=1").text
            links = dict(re.findall(r'<a rel="(prev|next)" href="([^"]+)" aria-key', page))
            assert links == {way: f"/scans/{ids[to]}?queue=1" for way, to in beside.items()}
            assert '<a href="/review">Review</a>' in page
        answer = {"finding": "present", "queue": "1"}
        following = eve.post(f"/scans/{ids['uncertain']}/opinions", data=answer)
        assert following.location == f"/scans/{ids['disputed']}?queue=1"
        with app.app_context():
            eve_id = db.session.scalars(select(User.id).where(User.username == "eve")).one()
            for due in queue_of(eve_id, 10):
                give(due.scan.id, eve_id, NewOpinion(Finding.PRESENT), from_queue=True)
            db.session.commit()
            assert next_in_queue(eve_id) is None
        assert "No scans need your opinion now" in eve.get("/review").text


class TestApi:
    def test_opinions_are_given_listed_and_withdrawn(self, app: Flask) -> None:
        ann = api_client(app, "ann")
        scan_id = add_done(app, slices=2)
        path = f"/api/v1/scans/{scan_id}/opinions"
        region = {"x": 0.5, "y": 0.5, "rx": 0.1, "ry": 0.1}
        given = {"finding": "present", "slice": 1, "types": ["subdural"], "region": region}
        made = ann.put(path, json=given)
        assert made.status_code == 200 and made.json is not None
        assert made.json["region"] == region and made.json["agrees"] is None
        assert ann.put(path, json={"finding": "absent"}).json["agrees"] is False  # type: ignore[index]
        listed = ann.get(path).json
        assert listed is not None
        assert listed["confirmed"] == "absent" and listed["disputed"] is False
        assert [each["slice"] for each in listed["items"]] == [None, 1]
        assert ann.delete(f"{path}/{made.json['id']}").status_code == 204
        assert ann.delete(f"{path}/{made.json['id']}").status_code == 404

    @pytest.mark.parametrize(
        ("body", "sentence"),
        [
            ({}, "finding: Missing data for required field."),
            ({"finding": "present", "slice": 9}, "no such slice"),
            ({"finding": "present", "slice": "1"}, "slice: Not a valid integer."),
            ({"finding": "present", "region": {"x": 2}}, "region.x: Must be"),
            ({"finding": "present", "color": 1}, "color: Unknown field."),
            ([], "Invalid input type."),
        ],
    )
    def test_a_body_that_makes_no_sense_is_refused_in_a_sentence(
        self, app: Flask, body: object, sentence: str
    ) -> None:
        ann = api_client(app, "ann")
        answer = ann.put(f"/api/v1/scans/{add_done(app)}/opinions", json=body)
        assert sentence in problem_of(answer, 422)

    def test_a_body_that_is_no_json_is_refused_in_a_sentence(self, app: Flask) -> None:
        ann = api_client(app, "ann")
        path = f"/api/v1/scans/{add_done(app)}/opinions"
        answer = ann.put(path, data=b"{finding", content_type="application/json")
        assert problem_of(answer, 400) == "The body is not valid JSON."

    def test_a_scan_is_shared_and_taken_back_and_others_see_it_meanwhile(self, app: Flask) -> None:
        ann, bob = api_client(app, "ann"), api_client(app, "bob")
        scan_id = add_done(app)
        path = f"/api/v1/scans/{scan_id}/shares"
        unknown = ann.post(path, json={"username": "nobody"})
        assert "no user named" in problem_of(unknown, 409)
        made = ann.post(path, json={"username": "bob"})
        assert made.status_code == 201 and made.json is not None
        assert bob.get(f"/api/v1/scans/{scan_id}").status_code == 200
        assert bob.get("/api/v1/scans").json["total"] == 0  # type: ignore[index]
        shared = bob.get("/api/v1/scans?shared=1").json
        assert shared is not None and shared["items"][0]["submitter"] == "ann"
        assert bob.get(path).status_code == 404
        assert [each["username"] for each in ann.get(path).json["items"]] == ["bob"]  # type: ignore[index]
        assert ann.delete(f"{path}/{made.json['id']}").status_code == 204
        assert bob.get(f"/api/v1/scans/{scan_id}").status_code == 404

    def test_the_review_queue_is_for_reviewers(self, app: Flask) -> None:
        ann, bob = api_client(app, "ann"), api_client(app, "bob", Role.REVIEWER)
        scan_id = add_done(app, state="inconclusive")
        share_with_reviewers(app, scan_id)
        assert ann.get("/api/v1/review").status_code == 404
        queue = bob.get("/api/v1/review").json
        assert queue is not None and queue["counts"]["uncertain"] == 1
        (due,) = queue["items"]
        assert due["scan_id"] == scan_id and due["reason"] == "uncertain"


def api_client(app: Flask, username: str, role: Role = Role.USER) -> FlaskClient:
    """Return an API client that acts for a new person in that role."""
    return api_client_of(app, make_user(app, username, role))


def api_client_of(app: Flask, user_id: str) -> FlaskClient:
    """Return an API client that acts for that person."""
    token = make_token(app, user_id)
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return client
