"""The commands of `flask --app webapp`."""

from __future__ import annotations

import re
import sqlite3
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import func, select

from ml.artifacts.folder import write_model
from tests.conftest import PASSWORD, make_user
from tests.ml.conftest import a_card, features_graph, head_graph
from webapp import cli, create_app, setup
from webapp.extensions import db, utc_now
from webapp.models import (
    ApiToken,
    Comparison,
    Dataset,
    JobStatus,
    LoginSession,
    ModelVersion,
    Promotion,
    Role,
    TrainingRun,
    User,
    live_version,
    new_id,
    promote,
)
from webapp.models.accounts import secret_hash
from webapp.storage import storage


def run(app: Flask, *arguments: str, **environ: str) -> Result:
    """Run a command as a person at a terminal would."""
    return app.test_cli_runner().invoke(args=list(arguments), env=environ)


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in place of the one that ships."""
    folder = tmp_path / "starter"
    write_model(folder, a_card(), {"features.onnx": features_graph(), "head.onnx": head_graph()})
    monkeypatch.setattr(setup, "STARTER_DIR", folder)
    monkeypatch.setattr(setup, "STARTER_SERIES_DIR", tmp_path / "none")
    return folder


@pytest.fixture
def new_app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    """An application whose database has no tables yet, on each kind of database."""
    app = create_app(
        {
            "TESTING": True,
            "SECRET_KEY": "not a secret",
            "HEMOSCAN_HOME": tmp_path,
            "DATABASE_URL": database_url,
            "BROKER_URL": f"redis+socket://{tmp_path / 'nobody.sock'}",
            "STORAGE_URL": f"file://{tmp_path / 'files'}",
        }
    )
    yield app
    with app.app_context():
        db.engine.dispose()


def test_setup_makes_tables_an_admin_and_a_live_model(new_app: Flask, starter: Path) -> None:
    result = run(new_app, "setup")

    assert result.exit_code == 0, result.output
    password = re.search(r"with the password (\S+) ", result.output)
    assert password
    with new_app.app_context():
        admin = db.session.scalars(select(User)).one()
        assert (admin.username, admin.role) == ("admin", Role.ADMIN)
        assert admin.has_password(password[1])
        live = live_version("slice")
        assert live is not None
        assert storage.keys(live.storage_prefix) == [
            f"{live.storage_prefix}/{name}" for name in ("card.json", "features.onnx", "head.onnx")
        ]
        assert (
            storage.get(f"{live.storage_prefix}/head.onnx") == (starter / "head.onnx").read_bytes()
        )


def test_setup_again_changes_nothing_and_shows_no_password(new_app: Flask, starter: Path) -> None:
    run(new_app, "setup")
    with new_app.app_context():
        before = storage.keys("models")

    again = run(new_app, "setup")

    assert again.exit_code == 0
    assert "password" not in again.output
    with new_app.app_context():
        assert storage.keys("models") == before
        assert db.session.scalar(select(func.count()).select_from(User)) == 1
        assert db.session.scalar(select(func.count()).select_from(Promotion)) == 1


def test_setup_leaves_the_bare_mount_point_of_an_older_installation_alone(
    new_app: Flask, starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(new_app, "setup")
    (tmp_path / "files").rename(tmp_path / "elsewhere")
    (tmp_path / "files").mkdir()
    write_model(
        tmp_path / "newer",
        a_card(),
        {"features.onnx": features_graph(), "head.onnx": head_graph(gain=3.0)},
    )
    monkeypatch.setattr(setup, "STARTER_DIR", tmp_path / "newer")

    again = run(new_app, "setup")

    assert again.exit_code == 0
    assert (
        "The storage is unavailable or empty, although the database refers to files in it"
        in again.output
    )
    assert not list((tmp_path / "files").iterdir())
    (tmp_path / "files").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "files")
    assert "Installed the starter model" in run(new_app, "setup").output, (
        "what was left out then is made up for"
    )


def test_setup_makes_a_starter_for_series_live_for_series(
    new_app: Flask, starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "starter_series"
    write_model(
        folder,
        a_card(reads="series"),
        {"features.onnx": features_graph(), "head.onnx": head_graph(gain=3.0)},
    )
    monkeypatch.setattr(setup, "STARTER_SERIES_DIR", folder)

    result = run(new_app, "setup")

    assert result.exit_code == 0, result.output
    assert result.output.count("Installed the starter model") == 2
    with new_app.app_context():
        live = [live_version(reads) for reads in ("slice", "series")]
        assert [version and version.reads for version in live] == ["slice", "series"]


def test_two_setups_at_once_do_the_work_once(new_app: Flask, starter: Path) -> None:
    def set_up(_: int) -> None:
        with new_app.app_context(), setup.one_at_a_time():
            if not db.inspect(db.engine).has_table("user"):
                db.create_all()
            setup.ensure_admin()
            setup.has_storage()
            setup.install_starter(starter)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(set_up, range(3)))

    with new_app.app_context():
        assert db.session.scalar(select(func.count()).select_from(User)) == 1
        assert db.session.scalar(select(func.count()).select_from(ModelVersion)) == 1


def test_a_new_starter_replaces_the_old_one_but_not_a_trained_version(
    app: Flask, starter: Path, tmp_path: Path
) -> None:
    newer, newest = tmp_path / "newer", tmp_path / "newest"
    for gain, folder in ((5.0, newer), (6.0, newest)):
        write_model(
            folder,
            a_card(),
            {"features.onnx": features_graph(), "head.onnx": head_graph(gain=gain)},
        )
    with app.app_context():
        setup.install_starter(starter)
        first = live_version("slice")
        setup.install_starter(newer)
        second = live_version("slice")
        assert first is not None and second is not None and first.id != second.id

        run_of_a_person = a_training_run()
        trained = ModelVersion(
            run_id=run_of_a_person,
            card_id="t",
            architecture="alexnet_svm",
            reads="slice",
            storage_prefix="models/t",
            card={"id": "t"},
        )
        db.session.add(trained)
        promote(trained, None, "better on our scans")
        db.session.commit()
        setup.install_starter(newest)
        assert live_version("slice") is trained
        compared = [
            (pair.version.card_id, pair.other_id) for pair in db.session.scalars(select(Comparison))
        ]
        newest_id = db.session.scalar(
            select(ModelVersion.card_id).order_by(ModelVersion.created_at.desc()).limit(1)
        )
        # The old starter with the one that replaced it, and the newest with the trained version.
        assert compared == [(first.card_id, second.id), (newest_id, trained.id)]


def test_the_answers_of_a_starter_are_stored_beside_it_even_later(
    app: Flask, starter: Path
) -> None:
    with app.app_context():
        setup.install_starter(starter)
        live = live_version("slice")
        assert live is not None
        key = f"{live.storage_prefix}/predictions.csv"
        assert not storage.exists(key)
        (starter / "predictions.csv").write_text("level\n")
        setup.install_starter(starter)
        assert storage.get(key) == b"level\n"


def a_training_run() -> str:
    """Return the id of a finished run."""
    run = TrainingRun(
        architecture="alexnet_svm",
        settings={},
        initial_weights="starter",
        seed=1,
        status=JobStatus.DONE,
    )
    db.session.add(run)
    db.session.commit()
    return run.id


def test_setup_without_a_starter_model_warns(
    new_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "STARTER_DIR", tmp_path / "none")
    monkeypatch.setattr(setup, "STARTER_SERIES_DIR", tmp_path / "none")

    result = run(new_app, "setup")

    assert result.exit_code == 0
    assert (
        "There is no starter model. All scans will fail until an administrator trains and promotes"
        " a model." in result.output
    )


def test_setup_does_not_touch_somebody_elses_account_named_admin(
    app: Flask, capsys: pytest.CaptureFixture[str]
) -> None:
    make_user(app, "Admin")
    with app.app_context():
        setup.ensure_admin()
        assert db.session.scalars(select(User.role)).all() == [Role.USER]
    assert "`flask --app webapp create-admin USERNAME`" in capsys.readouterr().out


def test_create_admin_takes_the_password_from_the_environment(app: Flask) -> None:
    result = run(
        app,
        "create-admin",
        "Eve",
        "--email",
        "Eve@example.org",
        "--name",
        "Eve Lee",
        "--phone",
        "+49 30 1",
        HEMOSCAN_PASSWORD=PASSWORD,
    )

    assert result.exit_code == 0, result.output
    with app.app_context():
        eve = db.session.scalars(select(User)).one()
        assert (eve.username, eve.email, eve.email_key, eve.name, eve.phone) == (
            "Eve",
            "Eve@example.org",
            "eve@example.org",
            "Eve Lee",
            "+49 30 1",
        )
        assert eve.is_admin and eve.has_password(PASSWORD)


def test_create_admin_asks_for_the_password_twice(app: Flask) -> None:
    result = app.test_cli_runner().invoke(
        args=["create-admin", "eve"],
        input=f"{PASSWORD}\n{PASSWORD}\n",
        env={"HEMOSCAN_PASSWORD": ""},
    )

    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output


def test_create_admin_makes_an_existing_account_an_admins_and_ends_its_logins(app: Flask) -> None:
    user_id = make_user(app, "ann")
    with app.app_context():
        db.session.add(LoginSession(user_id=user_id, secret_hash="a", expires_at=utc_now()))
        db.session.commit()

    result = run(app, "create-admin", "Ann", HEMOSCAN_PASSWORD="another long password")

    assert result.exit_code == 0
    assert "The existing account ann is now an administrator account" in result.output
    with app.app_context():
        ann = db.session.scalars(select(User)).one()
        assert ann.is_admin and ann.has_password("another long password")
        assert ann.name == "Ann" and ann.email == "ann@example.org"
        assert db.session.scalar(select(func.count()).select_from(LoginSession)) == 0


@pytest.mark.parametrize(
    ("username", "password", "sentence"),
    [
        ("eve", "short", "Passwords must have at least 10 characters."),
        ("e ve", PASSWORD, "Usernames have 2 to 64"),
    ],
)
def test_create_admin_refuses_what_the_sign_up_page_refuses(
    app: Flask, username: str, password: str, sentence: str
) -> None:
    result = run(app, "create-admin", username, HEMOSCAN_PASSWORD=password)

    assert result.exit_code == 1
    assert sentence in result.output


def test_create_admin_says_whose_email_address_it_is(app: Flask) -> None:
    make_user(app, "ann")

    result = run(
        app, "create-admin", "eve", "--email", "ANN@example.org", HEMOSCAN_PASSWORD=PASSWORD
    )

    assert result.exit_code == 1
    assert "Another account already uses the email address ANN@example.org." in result.output


def test_create_token_prints_the_token_alone_on_the_last_line_and_keeps_its_hash(
    app: Flask,
) -> None:
    make_user(app, "ann")

    result = run(app, "create-token", "Ann")

    token = result.output.splitlines()[-1]
    assert re.fullmatch(r"[\w-]{43}", token)
    with app.app_context():
        assert db.session.scalars(select(ApiToken.secret_hash)).all() == [secret_hash(token)]


def test_create_token_takes_scopes_and_days_within_the_operators_limits(app: Flask) -> None:
    make_user(app, "ann")

    result = run(app, "create-token", "ann", "--scope", "review", "--scope", "read", "--days", "7")
    admin = run(app, "create-token", "ann", "--scope", "admin")
    endless = run(app, "create-token", "ann", "--days", "0")

    assert "for read review" in result.output
    assert (admin.exit_code, endless.exit_code) == (1, 1)
    assert admin.output == "Error: Only administrators can have tokens for the administration.\n"
    assert endless.output == "Error: A token is valid for at most 365 days here.\n"


def test_create_token_of_nobody_is_a_sentence(app: Flask) -> None:
    result = run(app, "create-token", "nobody")

    assert (result.exit_code, result.output) == (1, "Error: User 'nobody' does not exist.\n")


def test_import_dataset_packs_a_folder(app: Flask, tmp_path: Path) -> None:
    folder = tmp_path / "hospital"
    (folder / "normal").mkdir(parents=True)
    (folder / "normal" / "1.png").write_bytes(b"one")
    (folder / ".hidden").write_bytes(b"none of your business")

    result = run(app, "import-dataset", str(folder))

    assert result.exit_code == 0, result.output
    with app.app_context():
        dataset = db.session.scalars(select(Dataset)).one()
        assert (dataset.name, dataset.status) == ("hospital", JobStatus.QUEUED)
        with storage.open(dataset.archive_key) as content, zipfile.ZipFile(content) as archive:
            assert archive.namelist() == ["normal/1.png"]
    assert list((tmp_path / "incoming").iterdir()) == []


def test_import_dataset_takes_a_zip_and_a_name(app: Flask, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("normal/1.png", b"one")

    assert (
        run(app, "import-dataset", str(tmp_path / "some.zip"), "--name", "Head CT").exit_code == 0
    )
    again = run(app, "import-dataset", str(tmp_path / "some.zip"), "--name", "Head CT")

    assert again.exit_code == 1
    assert "A data set named “Head CT” already exists." in again.output
    with app.app_context():
        assert db.session.scalars(select(Dataset.name)).all() == ["Head CT"]


def test_import_dataset_refuses_what_is_no_archive(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("filename,label\n")

    result = run(app, "import-dataset", str(tmp_path / "labels.csv"))

    assert (result.exit_code, result.output) == (
        1,
        "Error: The file is not a complete ZIP archive.\n",
    )


@pytest.mark.parametrize(
    ("status", "error", "exit_code", "sentence"),
    [
        (JobStatus.DONE, None, 0, "The data set 'x' is ready."),
        (JobStatus.FAILED, "The file 1.png is missing.", 1, "The file 1.png is missing."),
    ],
)
def test_waiting_ends_with_the_workers_verdict(
    app: Flask,
    capsys: pytest.CaptureFixture[str],
    status: JobStatus,
    error: str | None,
    exit_code: int,
    sentence: str,
) -> None:
    with app.app_context():
        dataset = Dataset(
            id=new_id(), name="x", archive_key="datasets/x.zip", status=status, error=error
        )
        db.session.add(dataset)
        db.session.commit()
        try:
            cli.wait_for_dataset(dataset.id)
        except cli.click.ClickException as err:
            assert (exit_code, err.message) == (1, sentence)
        else:
            assert exit_code == 0
            assert sentence in capsys.readouterr().out


def test_a_worker_can_write_while_somebody_waits_for_it(
    app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_the_worker(_seconds: float) -> None:
        with sqlite3.connect(tmp_path / "test.db", timeout=0) as worker:
            worker.execute("UPDATE dataset SET status = 'done'")
        worker.close()

    monkeypatch.setattr(cli.time, "sleep", be_the_worker)
    with app.app_context():
        dataset = Dataset(id=new_id(), name="x", archive_key="datasets/x.zip")
        db.session.add(dataset)
        db.session.commit()
        cli.wait_for_dataset(dataset.id)


def test_a_corrected_data_set_takes_the_place_of_one_that_failed(
    app: Flask, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("normal/1.png", b"one")
    with app.app_context():
        storage.put("datasets/failed.zip", b"bytes")
        db.session.add(
            Dataset(
                name="x",
                archive_key="datasets/failed.zip",
                status=JobStatus.FAILED,
                error="It has one class.",
            )
        )
        db.session.commit()

    result = run(app, "import-dataset", str(tmp_path / "x.zip"))

    assert result.exit_code == 0, result.output
    with app.app_context():
        dataset = db.session.scalars(select(Dataset)).one()
        assert (dataset.status, dataset.error) == (JobStatus.QUEUED, None)
        assert storage.keys("datasets") == [dataset.archive_key]


def test_a_user_is_made_a_reviewer_and_the_last_admin_is_left_alone(app: Flask) -> None:
    make_user(app, "ann")
    make_user(app, "root", Role.ADMIN)
    assert "ann is now a reviewer." in run(app, "set-role", "ANN", "reviewer").output
    assert "already a reviewer" in run(app, "set-role", "ann", "reviewer").output
    assert "does not exist" in run(app, "set-role", "bob", "user").output
    assert "only administrator" in run(app, "set-role", "root", "user").output
    assert run(app, "set-role", "ann", "admin").exit_code != 0
    with app.app_context():
        roles = {user.username: user.role for user in db.session.scalars(select(User))}
    assert roles == {"ann": Role.REVIEWER, "root": Role.ADMIN}
