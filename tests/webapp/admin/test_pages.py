"""What all pages of the administration share."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, select

from tests.webapp.admin.conftest import EXPLORATION, PAGES, add, add_dataset, add_run, add_version
from webapp.extensions import db
from webapp.models import Dataset, JobStatus, ModelVersion, Role, User, promote


@pytest.mark.parametrize("number", [2**31, 2**63, 10**30])
def test_a_number_that_no_column_holds_is_not_found(
    app: Flask, admin: FlaskClient, number: int
) -> None:
    with app.app_context():
        version_id = add_version("card")
    for rule in app.url_map.iter_rules():
        if "<int:" in rule.rule and "GET" in (rule.methods or ()):
            path = re.sub("<int:[^>]*>", str(number), rule.rule)
            answer = admin.get(re.sub("<[^>]*>", version_id, path))
            assert answer.status_code in (401, 404), rule.rule


class TestCheapness:
    @pytest.mark.parametrize(
        "page", ["/admin", "/admin/datasets", "/admin/runs", "/admin/models", "/admin/users"]
    )
    def test_a_long_list_costs_as_many_queries_as_a_short_one(
        self, app: Flask, admin: FlaskClient, page: str
    ) -> None:
        def add_one_of_each(number: int) -> None:
            with app.app_context():
                run = add_run(
                    JobStatus.DONE,
                    datasets=[db.session.get_one(Dataset, add_dataset(f"set {number}"))],
                    launched_by_id=db.session.scalars(
                        select(User.id).where(User.username == "root")
                    ).one(),
                )
                version = db.session.get_one(
                    ModelVersion, add_version(f"card {number}", run_id=run)
                )
                promote(version, None, "A reason.")
                add(User(username=f"user{number}", password="p"))

        def queries() -> int:
            statements: list[str] = []
            with app.app_context():
                engine = db.engine

            def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
                statements.append(statement)

            event.listen(engine, "before_cursor_execute", count)
            try:
                assert admin.get(page).status_code == 200
            finally:
                event.remove(engine, "before_cursor_execute", count)
            return len(statements)

        add_one_of_each(1)
        add_one_of_each(2)
        few = queries()
        for number in range(3, 6):
            add_one_of_each(number)
        assert queries() == few

    def test_a_list_is_paged(self, app: Flask, admin: FlaskClient) -> None:
        with app.app_context():
            for number in range(30):
                db.session.add(
                    Dataset(
                        name=f"set-{number:02}", status=JobStatus.DONE, archive_key="datasets/x.zip"
                    )
                )
            db.session.commit()
        first, second = (admin.get(f"/admin/datasets?page={page}").text for page in (1, 2))
        assert first.count(">set-") == 25 and second.count(">set-") == 5
        assert "Page 2 of 2" in admin.get("/admin/datasets?page=99").text


def test_the_pages_work_on_postgresql_too(any_database_app: Flask) -> None:
    with any_database_app.app_context():
        add_version("card-one", run_id=add_run(JobStatus.DONE))
        add_dataset("mine", exploration=EXPLORATION)
        add(User(username="root", password="a long enough password", role=Role.ADMIN))
    client = any_database_app.test_client()
    client.post("/login", data={"username": "root", "password": "a long enough password"})
    assert [client.get(page).status_code for page in PAGES] == [200] * len(PAGES)
    assert "0.951" in client.get("/admin/runs").text
