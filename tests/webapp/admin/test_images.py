"""The pages of the images of a data set, of questions about data sets, and of processing."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, select, update

from tests.webapp.admin.conftest import EXPLORATION, LogIn, add, add_dataset
from webapp.deletion import delete_dataset
from webapp.extensions import db
from webapp.models import (
    Act,
    AnalysisKind,
    AuditEvent,
    Dataset,
    DatasetAnalysis,
    DatasetImage,
    DatasetPair,
    JobStatus,
    LabelCorrection,
    Preview,
    Role,
    Scan,
    User,
    dataset_scan,
    new_preview,
    thumbnails_file,
)
from webapp.storage import storage

DISTRIBUTIONS = {
    "sources": {"one": 3, "two": 3},
    "common_sizes": [[64, 64, 5], [32, 16, 1]],
    **{
        name: {
            "low": 0.0,
            "high": 64.0,
            "series": {key: [0.25, 0.75] for key in ("all", "positive", "negative", "source one")},
        }
        for name in ("grays", "head", "size")
    },
}
PROBE = {
    "name": "file size",
    "auroc": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 6, "reason": None},
    "accuracy": {"value": 0.8, "low": None, "high": None, "n": 6, "reason": None},
    "majority": 0.5,
    "suspicious": True,
}
FOLD = {
    "images": 3,
    "positive": 1,
    "negative": 2,
    "groups": 2,
    "positive_groups": 1,
    "weak_scans": 0,
}
SPLIT = {
    "folds": [FOLD, FOLD],
    "groups": 4,
    "positive_groups": 2,
    "negative_groups": 2,
    "crossing_groups": 0,
    "crossing_duplicates": 0,
    "refused": "",
    "notes": ["a note"],
}


def image(dataset_id: str, number: int, **columns: Any) -> DatasetImage:
    """Return the row of an image; the odd ones show hemorrhage."""
    return DatasetImage(
        **{
            "dataset_id": dataset_id,
            "number": number,
            "name": f"one/{number}.png",
            "label": number % 2,
            "patient": number // 2 + 1,
            "group": number // 2 + 1,
            "source": "one" if number < 3 else "two",
            "types": "|subdural|" if number == 1 else None,
            "width": 64,
            "height": 64,
            "mode": "L",
            "bytes": 1000 + number,
            "sha256": f"{number:064x}",
            "dhash": "0" * 64,
            "gray": 0.5 - number / 100,
            "head_share": 0.9,
            "problems": [],
            "kinds": "",
            "files": [f"set/one/{number}.png"],
            "thumbnail_at": 10 * number,
            "thumbnail_bytes": 10,
            **columns,
        }
    )


def indexed(dataset_id: str) -> str:
    """Commit six images of a data set as a worker writes them, the last of which cannot be read,
    and a question about it; return the question's id.
    """
    problem = [["left out", "the file <cannot> be opened."]]
    unread = {
        "group": None,
        "width": 0,
        "height": 0,
        "sha256": "",
        "gray": None,
        "head_share": None,
        "thumbnail_at": None,
        "thumbnail_bytes": None,
        "problems": problem,
        "kinds": "|left out|",
    }
    pair = {"kinds": "|near-duplicate|"}
    columns: dict[int, dict[str, Any]] = {
        0: pair,
        1: {"mask": "set/masks/1.png"},
        3: pair,
        5: unread,
    }
    db.session.add_all(image(dataset_id, n, **columns.get(n, {})) for n in range(6))
    for number, other in ((0, 3), (3, 0)):
        db.session.add(DatasetPair(dataset_id=dataset_id, number=number, other=other))
    done = {"status": JobStatus.DONE, "dataset_id": dataset_id}
    question = DatasetAnalysis(
        kind=AnalysisKind.SPLIT, question="folds=5 seed=0", result=SPLIT, **done
    )
    db.session.add_all((DatasetAnalysis(kind=AnalysisKind.IMAGES, question="", **done), question))
    storage.put(thumbnails_file(dataset_id), b"".join(b"picture %02d" % n for n in range(5)))
    db.session.commit()
    return question.id


@pytest.fixture
def explored(app: Flask) -> str:
    """The id of a data set whose images are indexed."""
    with app.app_context():
        exploration = {**EXPLORATION, "distributions": DISTRIBUTIONS}
        dataset_id = add_dataset("heads", exploration=exploration)
        indexed(dataset_id)
        storage.put("datasets/heads.zip", b"an archive")
    return dataset_id


def numbers_on(page: str) -> list[int]:
    """Return the images that the grid shows, as the page counts them."""
    return [int(match) for match in re.findall(r'<span class="muted">(\d+)</span>', page)]


FILTERS = (
    ("", [1, 2, 3, 4, 5, 6]),
    ("label=positive", [2, 4, 6]),
    ("label=negative&group=1", [1]),
    ("patient=2", [3, 4]),
    ("type=subdural", [2]),
    ("problem=left out", [6]),
    ("problem=any", [6]),
    ("problem=near-duplicate", [1, 4]),
    ("mask=yes", [2]),
    ("size=64x64&source=two", [4, 5]),
    ("sort=brightest", [1, 2, 3, 4, 5, 6]),
    ("sort=darkest&label=negative", [5, 3, 1]),
    ("sort=file-size", [6, 5, 4, 3, 2, 1]),
    ("group=none&sort=odd&label=odd", [1, 2, 3, 4, 5, 6]),
)


def test_filters_in_the_address_choose_and_sort_images(admin: FlaskClient, explored: str) -> None:
    for query, shown in FILTERS:
        page = admin.get(f"/admin/datasets/{explored}/images?{query}").text
        assert numbers_on(page) == shown, query


def test_neighbors_follow_the_filters_and_the_order(admin: FlaskClient, explored: str) -> None:
    def ways(number: int, query: str) -> dict[str, int]:
        page = admin.get(f"/admin/datasets/{explored}/images/{number}?{query}").text
        matches = re.findall(r'rel="(prev|next)" href="[^"]*/images/(\d+)\?', page)
        return {way: int(to) for way, to in matches}

    assert ways(2, "") == {"prev": 1, "next": 3}
    assert ways(2, "label=negative") == {"prev": 0, "next": 4}
    assert ways(2, "label=negative&sort=darkest") == {"prev": 4, "next": 0}
    assert ways(0, "label=negative") == {"next": 2}
    # Of equal size, they come by number; the one that cannot be read is the smallest.
    assert ways(0, "sort=smallest") == {"prev": 5, "next": 1}


def test_an_image_shows_its_near_duplicates_and_no_name_in_an_address(
    admin: FlaskClient, explored: str
) -> None:
    page = admin.get(f"/admin/datasets/{explored}/images/0").text
    assert f"/admin/datasets/{explored}/images/3" in page.split("Near-duplicates")[1]
    assert "group=1" in page and f"{0:064x}" in page
    assert not re.search(r'(href|src)="[^"]*\d\.png', page.split("<main")[1])
    unread = admin.get(f"/admin/datasets/{explored}/images/5").text
    assert "the file &lt;cannot&gt; be opened." in unread and "excluded from the data set" in unread
    assert admin.get(f"/admin/datasets/{explored}/images/6").status_code == 404


def test_a_thumbnail_is_a_part_of_one_file_or_a_placeholder(
    app: Flask, admin: FlaskClient, explored: str
) -> None:
    address = f"/admin/datasets/{explored}/images/%d/thumbnail.jpg"
    assert admin.get(address % 3).data == b"picture 03"
    assert admin.get(address % 5).location == "/static/no-picture.svg"
    with app.app_context():
        storage.delete(thumbnails_file(explored))
    assert admin.get(address % 3).location == "/static/no-picture.svg"


def test_a_page_of_a_large_data_set_takes_a_bounded_number_of_rows(
    app: Flask, admin: FlaskClient, explored: str
) -> None:
    with app.app_context():
        db.session.add_all(image(explored, number) for number in range(6, 406))
        db.session.commit()
        fetched: list[int] = []

        def note(*arguments: Any) -> None:
            fetched.append(arguments[2].count("dataset_image.name"))

        event.listen(db.engine, "before_cursor_execute", note)
    page = admin.get(f"/admin/datasets/{explored}/images?page=7").text
    with app.app_context():
        event.remove(db.engine, "before_cursor_execute", note)
    assert numbers_on(page) == list(range(361, 407)) and "406 images" in page
    assert not any(fetched)  # The grid reads no more of a row than it shows.


class TestCorrections:
    def correct(self, admin: FlaskClient, dataset_id: str, number: int, label: str) -> int:
        """Correct a label; return the status of the answer."""
        data = {"label": label, "reason": "a second look"}
        return admin.post(
            f"/admin/datasets/{dataset_id}/images/{number}/label", data=data
        ).status_code

    def test_they_are_collected_and_applied_as_a_new_version(
        self, app: Flask, admin: FlaskClient, explored: str
    ) -> None:
        with app.app_context():
            ann = add(User(username="ann", password="x" * 12, email="a@b.org", name="Ann"))
            scan = add(Scan(user_id=ann.id, kind="png", original_key="originals/1.png"))
            of = {"dataset_id": explored, "scan_id": scan.id, "study_id": scan.study_id}
            db.session.execute(dataset_scan.insert().values(of))
            db.session.commit()
        for number, label in ((0, "positive"), (1, "unlabeled"), (2, "positive"), (2, "negative")):
            assert self.correct(admin, explored, number, label) == 302
        listed = admin.get(f"/admin/datasets/{explored}/corrections").text
        assert numbers_on(listed) == [1, 2] and 'value="heads v2"' in listed
        assert "correction pending" in admin.get(f"/admin/datasets/{explored}/images").text

        answer = admin.post(f"/admin/datasets/{explored}/corrections", data={"name": "heads v2"})

        with app.app_context():
            new = db.session.scalars(select(Dataset).where(Dataset.name == "heads v2")).one()
            old = db.session.get_one(Dataset, explored)
            assert answer.location == f"/admin/datasets/{new.id}"
            assert (new.status, new.archive_key) == (JobStatus.QUEUED, old.archive_key)
            assert new.corrected_labels == {"one/0.png": 1, "one/1.png": None}
            assert new.corrections and new.corrections[0]["was"] == 0
            assert db.session.scalars(select(LabelCorrection)).all() == []
            copied = select(dataset_scan).where(dataset_scan.c.dataset_id == new.id)
            rows = db.session.execute(copied).all()
            assert [tuple(row)[1:] for row in rows] == [(scan.id, scan.study_id)]
            acts = db.session.execute(
                select(AuditEvent.act, AuditEvent.detail)
                .where(AuditEvent.act.in_(list(Act)))
                .order_by(AuditEvent.id)
            ).all()
        assert [tuple(row) for row in acts if row.act.startswith(("label", "corr", "data"))] == [
            (Act.LABEL_CORRECTED, "image 1: normal → hemorrhage"),
            (Act.LABEL_CORRECTED, "image 2: hemorrhage → unknown"),
            (Act.LABEL_CORRECTED, "image 3: normal → hemorrhage"),
            (Act.CORRECTION_WITHDRAWN, "image 3"),
            (Act.DATASET_CORRECTED, "2 labels corrected"),
        ]
        again = admin.post(f"/admin/datasets/{explored}/corrections", data={"name": "heads v3"})
        assert again.status_code == 400 and "no pending corrections" in again.text

    def test_a_name_that_is_taken_keeps_the_corrections(
        self, app: Flask, admin: FlaskClient, explored: str
    ) -> None:
        self.correct(admin, explored, 0, "positive")
        answer = admin.post(f"/admin/datasets/{explored}/corrections", data={"name": "heads"})
        assert answer.status_code == 400 and "already exists" in answer.text
        with app.app_context():
            assert len(db.session.scalars(select(LabelCorrection)).all()) == 1
        assert self.correct(admin, explored, 0, "perhaps") == 400

    def test_a_data_set_that_is_deleted_meanwhile_is_not_found(
        self, admin: FlaskClient, explored: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def delete_first(*_: object) -> None:
            delete_dataset(explored)

        monkeypatch.setattr("webapp.learning.corrections.text_problem", delete_first)
        assert self.correct(admin, explored, 0, "positive") == 404

    def test_the_archive_stays_until_the_last_version_is_deleted(
        self, app: Flask, admin: FlaskClient, explored: str
    ) -> None:
        self.correct(admin, explored, 0, "positive")
        admin.post(f"/admin/datasets/{explored}/corrections", data={"name": "heads v2"})
        with app.app_context():
            db.session.execute(
                update(Dataset).where(Dataset.name == "heads v2").values(status=JobStatus.DONE)
            )
            db.session.commit()
            preview = new_preview({"dataset": explored, "image": 0}, {"kind": "picture"})
            preview.status = JobStatus.DONE
            storage.put(preview.file_key, b"pictures")
            db.session.commit()
            assert delete_dataset(explored)
            assert storage.exists("datasets/heads.zip")
            assert storage.keys("tiles") == storage.keys("previews") == []
            assert db.session.scalars(select(DatasetImage)).all() == []
            (last,) = db.session.scalars(select(Dataset.id)).all()
            assert delete_dataset(last)
            assert not storage.exists("datasets/heads.zip")


class TestQuestions:
    def test_a_split_is_asked_for_once_and_shown(
        self, app: Flask, admin: FlaskClient, explored: str
    ) -> None:
        page = admin.get(f"/admin/datasets/{explored}/split").text
        assert "Each group is in one fold only" in page and "a note" in page
        for _ in range(2):
            page = admin.get(f"/admin/datasets/{explored}/split?folds=3&seed=7").text
            assert "A train worker computes this" in page
        for query in ("folds=40&seed=7", "folds=&seed="):
            page = admin.get(f"/admin/datasets/{explored}/split?{query}").text
            assert "Enter 2 to 10 folds." in page
        with app.app_context():
            rows = db.session.scalars(
                select(DatasetAnalysis.question).where(DatasetAnalysis.kind == AnalysisKind.SPLIT)
            ).all()
            assert sorted(rows) == ["folds=3 seed=7", "folds=5 seed=0"]
            db.session.execute(
                update(DatasetAnalysis)
                .where(DatasetAnalysis.question == "folds=5 seed=0")
                .values(result={**SPLIT, "folds": [], "refused": "Only 2 groups show hemorrhage."})
            )
            db.session.commit()
        page = admin.get(f"/admin/datasets/{explored}/split").text
        assert "This data set cannot be split" in page

    def test_data_sets_are_compared_in_pairs(
        self, app: Flask, admin: FlaskClient, explored: str
    ) -> None:
        with app.app_context():
            exploration = {**EXPLORATION, "distributions": DISTRIBUTIONS}
            other = add_dataset("others", exploration=exploration)
            old = add_dataset("old")
            indexed(other)
        address = f"/admin/datasets/compare?set={explored}&set={other}&set={old}&set=odd"
        page = admin.get(address).text
        assert "The images of old must be indexed" in page
        with app.app_context():
            question = db.session.scalars(
                select(DatasetAnalysis).where(DatasetAnalysis.kind == AnalysisKind.SOURCES)
            ).one()
            question.status, question.result = JobStatus.DONE, {"probes": [PROBE], "shared": 2}
            db.session.commit()
        page = admin.get(address).text
        assert "reveals the source" in page and "2 files are in both" in page
        assert page.count('class="chart distribution"') == 3 and "0.900" in page

    def test_a_data_set_that_was_imported_before_is_indexed_when_asked(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            dataset_id = add_dataset("old", exploration=EXPLORATION)
        address = f"/admin/datasets/{dataset_id}/images"
        assert "imported before images could be browsed" in admin.get(address).text
        for _ in range(2):
            assert admin.post(address).status_code == 302
        assert "Indexing the images" in admin.get(address).text
        with app.app_context():
            question = db.session.scalars(select(DatasetAnalysis)).one()
            question.status, question.error = JobStatus.FAILED, "It is damaged."
            db.session.commit()
        assert "It is damaged." in admin.get(address).text
        admin.post(address)
        with app.app_context():
            assert db.session.scalars(select(DatasetAnalysis)).one().status == JobStatus.QUEUED


class TestProcessing:
    def test_the_address_chooses_slice_and_settings(
        self, app: Flask, admin: FlaskClient, explored: str
    ) -> None:
        query = "&level=60&width=200&size=128&normalization=clahe&skull=y&seed=3"
        assert (
            "A worker is computing"
            in admin.get(f"/admin/processing?dataset={explored}&image=2{query}").text
        )
        admin.get(f"/admin/processing?dataset={explored}&image=2{query}")
        with app.app_context():
            preview = db.session.scalars(select(Preview)).one()
            assert preview.what == {"dataset": explored, "image": 1}
            assert preview.settings["seed"] == 3 and preview.settings["version"] is None
            spec = preview.settings["spec"]
        assert (spec["window_level"], spec["window_width"], spec["size"]) == (60, 200, 128)
        assert (spec["normalisation"], spec["skull_stripping"], spec["upright"]) == (
            "clahe",
            True,
            False,
        )

    @pytest.mark.parametrize(
        "query", ["level=1e9&size=-5&seed=x", "phantom=../../etc/passwd", "version=none", ""]
    )
    def test_odd_settings_are_those_that_the_page_begins_with(
        self, app: Flask, admin: FlaskClient, query: str
    ) -> None:
        assert admin.get(f"/admin/processing?{query}").status_code == 200
        with app.app_context():
            preview = db.session.scalars(select(Preview)).one()
        assert preview.what == {"phantom": "phantom-5.dcm"}
        assert preview.settings["spec"]["window_level"] == 40
        assert preview.settings["spec"]["size"] == 224
        assert preview.settings["version"] is None

    def test_a_scan_of_somebody_else_is_none(
        self, app: Flask, admin: FlaskClient, logged_in: LogIn
    ) -> None:
        other = logged_in("boss", Role.ADMIN)
        with app.app_context():
            root = db.session.scalars(select(User).where(User.username == "root")).one()
            scan = add(
                Scan(
                    user_id=root.id,
                    kind="png",
                    original_key="originals/1.png",
                    status=JobStatus.DONE,
                )
            )
        address = f"/admin/processing?scan={scan.id}"
        assert "This image or scan does not exist" in other.get(address).text
        assert "A worker is computing" in admin.get(address).text
        with app.app_context():
            preview = db.session.scalars(select(Preview)).one()
            preview.status = JobStatus.DONE
            preview.result = [{"name": "original", "pictures": [[0, 3]], "notes": []}]
            storage.put(preview.file_key, b"oneandmore")
            db.session.commit()
        picture = f"/admin/previews/{preview.id}/0/0.png"
        assert admin.get(picture).data == b"one"
        assert other.get(picture).status_code == 404
        assert admin.get(f"/admin/previews/{preview.id}/1/0.png").status_code == 404

    def test_too_many_wait_is_reported_and_asked_again(
        self, app: Flask, admin: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("webapp.learning.previews.MOST_OPEN_PREVIEWS", 1)
        admin.get("/admin/processing?seed=1")
        page = admin.get("/admin/processing?seed=2").text
        assert "Many images are queued" in page and "every 1s" in page
        with app.app_context():
            assert len(db.session.scalars(select(Preview)).all()) == 1

    def test_moving_a_slider_writes_the_address(self, admin: FlaskClient) -> None:
        headers = {"HX-Request": "true"}
        answer = admin.get("/admin/processing/progress?level=60", headers=headers)
        assert answer.headers["HX-Replace-Url"] == "/admin/processing?level=60"
        assert "level=60" in answer.text


ODD = "seconds=1&endpoint=a&dataset_id=a&number=9&_method=POST&_scheme=ftp"


def test_what_no_page_asks_for_in_an_address_is_ignored(admin: FlaskClient, explored: str) -> None:
    for address in (
        f"datasets/{explored}/split?folds=3&seed=7&{ODD}",
        f"datasets/{explored}/images/0?outline=no&{ODD}",
        f"processing?level=60&{ODD}",
    ):
        page = admin.get(f"/admin/{address}")
        assert page.status_code == 200 and "_method" not in page.text
        assert "/progress?" in page.text  # What is not ready asks again, with its settings.


def test_a_corrected_version_says_so(app: Flask, admin: FlaskClient, explored: str) -> None:
    with app.app_context():
        change = {"name": "one/0.png", "was": 0, "label": 1, "reason": "a <second> look"}
        new = add_dataset(
            "heads v2",
            exploration=EXPLORATION,
            corrected_from_id=explored,
            corrections=[change],
        )
        db.session.execute(update(Dataset).values(archive_key="datasets/heads.zip"))
        db.session.commit()
    refused = admin.post("/admin/runs/new", data={"datasets": [explored, new], "seed": "0"})
    assert "heads and heads v2 are versions of one data set" in refused.text
    page = admin.get(f"/admin/datasets/{new}").text
    assert "1 label differs" in page and f"/admin/datasets/{explored}" in page
    assert "a &lt;second&gt; look" in admin.get(f"/admin/datasets/{new}/corrections").text
    assert "heads v2" in admin.get(f"/admin/datasets/{explored}").text
