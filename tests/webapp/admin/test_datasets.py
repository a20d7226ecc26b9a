"""Importing data sets and looking at what is in them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from tests.conftest import PASSWORD, make_user
from tests.webapp.admin.conftest import EXPLORATION, add_dataset, add_run, zip_of
from webapp.extensions import db
from webapp.models import Dataset, JobStatus, Role
from webapp.storage import Storage, StorageError, storage


class TestImport:
    def post(self, admin: FlaskClient, archive: io.BytesIO | None, name: str = "head_ct") -> Any:
        files = {} if archive is None else {"archive": FileStorage(archive, "set.zip")}
        # Encoded here: werkzeug's client puts a large body into a temporary file and leaves it
        # open.
        boundary, body = encode_multipart({"name": name, **files})
        return admin.post(
            "/admin/datasets", data=body, content_type=f"multipart/form-data; boundary={boundary}"
        )

    def test_a_zip_file_becomes_a_queued_data_set_and_the_spooled_file_is_gone(
        self, app: Flask, admin: FlaskClient, tmp_path: Path
    ) -> None:
        answer = self.post(admin, zip_of(**{"labels.csv": "id,hemorrhage\n"}))
        assert answer.status_code == 302
        with app.app_context():
            dataset = db.session.scalars(select(Dataset)).one()
            assert (dataset.name, dataset.status) == ("head_ct", "queued")
            assert dataset.imported_by is not None and dataset.imported_by.username == "root"
            assert zipfile.is_zipfile(storage.open(dataset.archive_key))
        assert answer.location == f"/admin/datasets/{dataset.id}"
        assert list((tmp_path / "incoming").iterdir()) == []
        assert "Queued for import" in admin.get(answer.location).text

    @pytest.mark.parametrize(
        ("content", "name", "sentence"),
        [
            (b"this is no archive", "head_ct", "ZIP"),
            (b"", "head_ct", "ZIP"),
            (None, "head_ct", "Choose a ZIP file."),
            (zip_of(a="b").getvalue(), "", "Enter a name for the data set."),
            (zip_of(a="b").getvalue(), "n" * 81, "at most 80 characters"),
        ],
    )
    def test_a_refused_import_says_why_and_leaves_nothing(
        self,
        app: Flask,
        admin: FlaskClient,
        tmp_path: Path,
        content: bytes | None,
        name: str,
        sentence: str,
    ) -> None:
        answer = self.post(admin, None if content is None else io.BytesIO(content), name)
        assert answer.status_code == 400
        assert sentence in answer.text
        with app.app_context():
            assert db.session.scalars(select(Dataset)).all() == []
            assert storage.keys("datasets") == []
        assert [*(tmp_path / "incoming").glob("*")] == []

    def test_a_name_is_taken_once(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            add_dataset("head_ct")
        answer = self.post(admin, zip_of(a="b"))
        assert answer.status_code == 400
        assert "head_ct" in answer.text.split('role="alert"')[1].split("</p>")[0]

    @pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
    def test_what_came_to_nothing_gives_its_name_away(
        self, app: Flask, admin: FlaskClient, status: JobStatus
    ) -> None:
        with app.app_context():
            add_dataset("head_ct", status)
            storage.put("datasets/head_ct.zip", b"of no use")
        assert self.post(admin, zip_of(a="b")).status_code == 302
        with app.app_context():
            assert db.session.scalars(select(Dataset)).one().status == "queued"
            assert not storage.exists("datasets/head_ct.zip")

    def test_an_archive_over_the_limit_is_refused_with_the_limit(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        app.config["MAX_DATASET_MB"] = 1
        answer = self.post(admin, io.BytesIO(bytes(3 * 2**20)))
        assert answer.status_code == 413
        assert "larger than the limit of 1 MB" in answer.text

    def test_an_archive_may_be_larger_than_a_scan(self, app: Flask, admin: FlaskClient) -> None:
        app.config["MAX_CONTENT_LENGTH"] = 2**20
        assert "ZIP" in self.post(admin, io.BytesIO(bytes(3 * 2**20))).text

    def test_the_form_with_its_csrf_token_is_accepted(self, app: Flask, admin: FlaskClient) -> None:
        app.config["WTF_CSRF_ENABLED"] = True
        token = (
            admin.get("/admin/datasets").text.split('name="csrf_token" value="')[1].split('"')[0]
        )
        data = {"name": "head_ct", "archive": (zip_of(a="b"), "set.zip"), "csrf_token": token}
        assert (
            admin.post("/admin/datasets", data=data, content_type="multipart/form-data").status_code
            == 302
        )


class TestDatasets:
    def test_a_ready_data_set_shows_what_is_in_it(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            storage.put("sheets/s.png", b"a picture")
            id = add_dataset(
                "mine",
                exploration=EXPLORATION,
                fingerprint="e" * 64,
                contact_sheet_key="sheets/s.png",
            )
        page = admin.get(f"/admin/datasets/{id}").text
        for part in (
            "manifest",
            "11",
            "100–256 px, median 128 px",
            "10 grayscale, 2 RGB",
            "c.png is &lt;broken&gt;.",
            "a.png and b.png",
            "e" * 64,
        ):
            assert part in page
        assert "Shortcuts" not in page  # it was imported before there were probes
        sheet = admin.get(f"/admin/datasets/{id}/contact-sheet.png")
        assert (sheet.data, sheet.mimetype) == (b"a picture", "image/png")
        again = admin.get(
            f"/admin/datasets/{id}/contact-sheet.png",
            headers={"If-None-Match": sheet.headers["ETag"]},
        )
        assert (again.status_code, again.data) == (304, b"")
        row = admin.get("/admin/datasets").text.split('id="datasets"')[1]
        assert ">12<" in row and ">5<" in row and ">7<" in row

    def test_shortcuts_and_greys_of_a_data_set_are_shown(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        figure = {"value": 0.83, "low": 0.75, "high": 0.9, "n": 12}
        missing = {
            "value": None,
            "low": None,
            "high": None,
            "n": 1,
            "reason": "fewer than two groups of a class",
        }
        explored = {
            **EXPLORATION,
            "slices_per_patient": {"min": 1, "median": 2.5, "max": 4},
            "scans": 9,
            "scan_labels": {"positive": 4, "negative": 3, "unknown": 2, "as_wholes": 5},
            "types": {"epidural": {"slices": 6, "patients": 2}},
            "histograms": {"positive": [0.25, 0.75], "negative": []},
            "probes": [
                {
                    "name": "file <size>",
                    "auroc": figure,
                    "accuracy": figure,
                    "majority": 0.58,
                    "suspicious": True,
                },
                {
                    "name": "border pixels",
                    "auroc": missing,
                    "accuracy": missing,
                    "majority": None,
                    "suspicious": False,
                },
            ],
        }
        with app.app_context():
            id = add_dataset("mine", exploration=explored)
        page = admin.get(f"/admin/datasets/{id}").text
        shown = (
            "file &lt;size&gt;",
            "0.830<br>",
            "(0.750–0.900)",
            "58.0",
            "fewer than two groups of a class",
            "1–4, median 2.5",
        )
        shown += (
            "9: 4 with hemorrhage, 3 without, 2 without a label; 5 have only scan-level labels",
            "6 slices, 2 patients",
        )
        for part in shown:
            assert part in page
        assert page.count(">above chance</td>") == 1
        # A quarter and three quarters of the width; the higher share reaches the top, 170 px above
        # the base line at 190.
        assert '<polyline class="positive" points="167.0,133.3 397.0,20.0"' in page
        assert '<polyline class="negative"' not in page

    def test_there_is_no_contact_sheet_before_the_worker_made_it(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            id = add_dataset("mine", JobStatus.QUEUED)
        assert admin.get(f"/admin/datasets/{id}/contact-sheet.png").status_code == 404

    def test_a_failed_data_set_shows_its_sentence_and_ends_the_polling(
        self, app: Flask, admin: FlaskClient
    ) -> None:
        with app.app_context():
            id = add_dataset("mine", JobStatus.FAILED, error="The image 3.png is missing.")
        answer = admin.get(f"/admin/datasets/{id}/progress")
        assert answer.status_code == 286
        assert "The image 3.png is missing." in answer.text
        assert "hx-trigger" not in admin.get(f"/admin/datasets/{id}").text

    def test_the_list_follows_a_data_set_that_is_read(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            add_dataset("mine", JobStatus.RUNNING, progress=0.25, stage="Reading images")
        assert 'hx-get="/admin/datasets/progress' in admin.get("/admin/datasets").text
        part = admin.get("/admin/datasets/progress")
        assert part.status_code == 200
        assert "25% · Reading images" in part.text and "<html" not in part.text
        assert (
            admin.get(
                "/admin/datasets/progress", headers={"If-None-Match": part.headers["ETag"]}
            ).status_code
            == 304
        )


class TestCancel:
    @pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
    def test_an_open_import_is_cancelled_and_its_archive_removed(
        self, app: Flask, admin: FlaskClient, status: JobStatus
    ) -> None:
        with app.app_context():
            id = add_dataset(
                "mine", status, lease_owner="somebody" if status == JobStatus.RUNNING else None
            )
            storage.put("datasets/mine.zip", b"an archive")
        assert 'form="cancel-import"' in admin.get(f"/admin/datasets/{id}").text
        assert (
            "The import was canceled"
            in admin.post(f"/admin/datasets/{id}/cancel", follow_redirects=True).text
        )
        with app.app_context():
            row = db.session.get_one(Dataset, id)
            assert (row.status, row.lease_owner) == ("cancelled", None)
            assert not storage.exists("datasets/mine.zip")

    def test_one_that_has_ended_stays_as_it_is(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            id = add_dataset("mine")
            storage.put("datasets/mine.zip", b"an archive")
        assert 'form="cancel-import"' not in admin.get(f"/admin/datasets/{id}").text
        assert (
            "This import has already finished."
            in admin.post(f"/admin/datasets/{id}/cancel", follow_redirects=True).text
        )
        with app.app_context():
            assert (
                storage.exists("datasets/mine.zip")
                and db.session.get_one(Dataset, id).status == "done"
            )


class TestDelete:
    @pytest.mark.parametrize("status", [JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED])
    def test_a_data_set_that_no_run_used_goes_with_its_files(
        self, app: Flask, admin: FlaskClient, status: JobStatus
    ) -> None:
        with app.app_context():
            id = add_dataset(
                "mine",
                status,
                contact_sheet_key="sheets/mine.png" if status == JobStatus.DONE else None,
            )
            for key in (
                ("datasets/mine.zip", "sheets/mine.png")
                if status == JobStatus.DONE
                else ("datasets/mine.zip",)
            ):
                storage.put(key, b"something")
        assert "Delete this data set" in admin.get(f"/admin/datasets/{id}").text
        assert (
            "The data set mine has been deleted."
            in admin.post(f"/admin/datasets/{id}/delete", follow_redirects=True).text
        )
        assert admin.get(f"/admin/datasets/{id}").status_code == 404
        with app.app_context():
            assert storage.keys("") == []

    @pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
    def test_one_that_is_being_imported_is_not_deleted(
        self, app: Flask, admin: FlaskClient, status: JobStatus
    ) -> None:
        with app.app_context():
            id = add_dataset("mine", status)
        assert "Delete this data set" not in admin.get(f"/admin/datasets/{id}").text
        assert (
            "being imported. Cancel the import first"
            in admin.post(f"/admin/datasets/{id}/delete", follow_redirects=True).text
        )
        with app.app_context():
            assert db.session.get(Dataset, id)

    @pytest.mark.parametrize("status", list(JobStatus))
    def test_one_that_a_run_used_is_kept(self, any_database_app: Flask, status: JobStatus) -> None:
        make_user(any_database_app, "root", Role.ADMIN)
        browser = any_database_app.test_client()
        browser.post("/login", data={"username": "root", "password": PASSWORD})
        with any_database_app.app_context():
            id = add_dataset("mine")
            storage.put("datasets/mine.zip", b"an archive")
            add_run(status, datasets=[db.session.get_one(Dataset, id)])
        assert (
            "This data set was used by a training run"
            in browser.post(f"/admin/datasets/{id}/delete", follow_redirects=True).text
        )
        with any_database_app.app_context():
            assert db.session.get(Dataset, id) and storage.exists("datasets/mine.zip")

    def test_files_that_cannot_be_removed_now_are_reported(
        self, app: Flask, admin: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with app.app_context():
            id = add_dataset("mine")

        def away(self: Storage, key: str) -> None:
            raise StorageError("A stored file cannot be removed.")

        monkeypatch.setattr(Storage, "delete", away)
        assert (
            "Its files will be removed soon"
            in admin.post(f"/admin/datasets/{id}/delete", follow_redirects=True).text
        )
