"""What workers make of confirmed scans: data sets, site figures and calibrated versions."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from sqlalchemy import delete, select

from ml.artifacts.folder import write_model
from ml.errors import DatasetError
from ml.evaluation.calibration import Platt
from ml.models.cells import head_to_onnx
from ml.networks.fine_tuning import Tuned
from ml.scans.phantoms import phantom, write_png
from tests.conftest import make_user
from tests.ml.conftest import CELLS, a_card, features_graph
from tests.ml.validation.test_site_calibration import write_site
from tests.plans import statements
from tests.worker.conftest import install_model
from webapp.deletion import delete_scan
from webapp.extensions import db
from webapp.learning.confirmed import (
    Filter,
    RequestRefused,
    confirmed_counts,
    request_calibration,
    request_dataset,
    request_figures,
    studies_learned_from,
)
from webapp.models import (
    Dataset,
    Finding,
    JobStatus,
    ModelVersion,
    OperatingPoint,
    Opinion,
    Prediction,
    Promotion,
    Role,
    Scan,
    Share,
    SiteFigures,
    TrainingRun,
    User,
    dataset_scan,
    new_id,
)
from webapp.storage import storage
from worker import tasks
from worker.learning import confirmed_dataset
from worker.learning.confirmed_dataset import Labels, labels_of, make_archive
from worker.learning.site_figures import compute_next_figures

PRESENT, ABSENT = Finding.PRESENT, Finding.ABSENT


def person(name: str) -> str:
    """Return the id of that person."""
    return db.session.scalars(select(User.id).where(User.username == name)).one()


def add_answered(
    version: ModelVersion,
    finding: Finding | None,
    *,
    probability: float = 0.9,
    sampling: float | None = None,
    shared: bool = True,
    picture: bytes | None = None,
    **columns: Any,
) -> Scan:
    """Add a scan of ann that a version answered, and bob's opinion on it."""
    scan = Scan(
        **{"id": new_id(), "title": "Jane Doe", **columns},
        user_id=person("ann"),
        kind="png",
        original_key=f"originals/{new_id()}.png",
        status=JobStatus.DONE,
        verdict_state="suspected" if probability >= 0.5 else "not found",
    )
    if picture is not None:
        storage.put(scan.original_key, picture)
    scan.prediction = Prediction(
        model_version=version,
        probability=probability,
        threshold=0.5,
        positive=probability >= 0.5,
        uncertain=False,
        warnings=[],
        slices=[probability],
        seconds=0.1,
    )
    db.session.add(scan)
    db.session.flush()
    if shared:
        db.session.add(Share(scan_id=scan.id))
    if finding is not None:
        values = {"scan_id": scan.id, "author_id": person("bob"), "sampling": sampling}
        db.session.add(Opinion(**values, finding=finding))
    db.session.commit()
    return scan


def head(seed: int, *, hemorrhage: bool, folder: Path) -> bytes:
    """Return a phantom as a PNG file."""
    write_png(phantom(seed, hemorrhage=hemorrhage, size=64), folder / "head.png")
    return (folder / "head.png").read_bytes()


def newest(table: type[Any]) -> Any:
    """Return the newest row of a table as it is now."""
    rows = select(table).order_by(table.created_at.desc()).limit(1)
    return db.session.scalars(rows, execution_options={"populate_existing": True}).one()


@pytest.fixture
def site(worker_app: Flask) -> Flask:
    """An application in a worker's context, with ann and the reviewer bob."""
    make_user(worker_app, "bob", Role.REVIEWER)
    return worker_app


def test_a_data_set_is_made_of_the_confirmed_scans_that_are_shared_and_names_nobody(
    site: Flask, tmp_path: Path
) -> None:
    version = install_model()
    scans = [
        add_answered(
            version,
            PRESENT if seed % 2 else ABSENT,
            picture=head(seed, hemorrhage=bool(seed % 2), folder=tmp_path),
        )
        for seed in range(4)
    ]
    picture = head(9, hemorrhage=True, folder=tmp_path)
    add_answered(version, PRESENT, shared=False, picture=picture)
    add_answered(version, None, picture=picture)
    add_answered(version, PRESENT)  # Its original is gone.
    dataset, _ = request_dataset("ours", Filter(), person("bob"))
    tasks.train_model()
    dataset = newest(Dataset)
    assert (dataset.status, dataset.error) == ("done", None)
    assert dataset.fingerprint and dataset.exploration
    assert (dataset.exploration["images"], dataset.exploration["patients"]) == (4, 4)
    assert dataset.exploration["positive"] == 2
    assert "1 confirmed scans were excluded" in dataset.exploration["problems"][0]
    made_of = [(scan.id, scan.study_id) for scan in scans]
    delete_scan(scans[0].id)
    entered = db.session.execute(select(dataset_scan.c.scan_id, dataset_scan.c.study_id))
    assert {tuple(row) for row in entered} == set(made_of)
    with zipfile.ZipFile(io.BytesIO(storage.get(dataset.archive_key))) as archive:
        content = " ".join(archive.namelist()) + archive.read("labels.csv").decode()
    assert "Jane" not in content and not any(scan.id in content for scan in scans)
    with pytest.raises(RequestRefused, match="already exists"):
        request_dataset("ours", Filter(), person("bob"))
    for nothing in (Filter(until="2000-01-01"), Filter(opinions=2), Filter(kind="series")):
        with pytest.raises(RequestRefused, match="No confirmed scan"):
            request_dataset("none", nothing, person("bob"))


def test_types_that_a_minority_names_are_no_labels() -> None:
    opinions = [
        Opinion(finding=finding, types=types, slice_index=index)
        for index in (None, 0)
        for finding, types in ((PRESENT, ["subdural"]), (ABSENT, []), (ABSENT, []))
    ]
    assert labels_of(opinions) == Labels(0, (), {0: 0}, {0: ()})


def test_a_scan_whose_opinion_is_withdrawn_meanwhile_is_left_out(
    site: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = install_model()
    picture = head(1, hemorrhage=True, folder=tmp_path)
    withdrawn, tied, kept = (add_answered(version, PRESENT, picture=picture) for _ in range(3))
    dataset, _ = request_dataset("ours", Filter(), person("bob"))
    entered = confirmed_dataset._enter

    def enter(dataset_id: str, scans: Sequence[Scan]) -> None:
        entered(dataset_id, scans)
        db.session.execute(delete(Opinion).where(Opinion.scan_id == withdrawn.id))
        values = {"scan_id": tied.id, "author_id": person("ann"), "finding": ABSENT}
        db.session.add(Opinion(**values))

    monkeypatch.setattr(confirmed_dataset, "_enter", enter)
    assert make_archive(dataset, tmp_path / "work", lambda *_: None) == []
    assert db.session.scalars(select(dataset_scan.c.scan_id)).all() == [kept.id]


def test_figures_weigh_by_the_draw_and_leave_out_what_the_version_learned_from(
    site: Flask,
) -> None:
    first = install_model(live=False)
    run = TrainingRun(architecture="x", settings={}, seed=0, initial_weights=f"version:{first.id}")
    dataset = Dataset(name="ours", archive_key="datasets/1.zip", status=JobStatus.DONE)
    earlier = TrainingRun(architecture="x", settings={}, seed=0, initial_weights="random")
    earlier.datasets = [dataset]
    db.session.add_all((run, earlier))
    db.session.flush()
    version = install_model()
    first.run_id, version.run_id = earlier.id, run.id
    drawn = {"sampling": 0.1}
    add_answered(version, PRESENT, id="0" * 31 + "1", **drawn)
    add_answered(version, ABSENT, id="0" * 31 + "2", **drawn)
    add_answered(version, None, id="0" * 31 + "3")
    add_answered(version, None, id="f" * 32)
    add_answered(version, PRESENT, probability=0.1)
    add_answered(version, ABSENT, shared=False)
    add_answered(version, ABSENT, study_id="its study")
    learned = {"dataset_id": dataset.id, "scan_id": "deleted meanwhile", "study_id": "its study"}
    db.session.execute(dataset_scan.insert().values(learned))
    db.session.commit()
    assert studies_learned_from(version) == {"its study"}
    assert confirmed_counts() == {"present": 2, "absent": 2, "disputed": 0}

    request_figures(None)
    tasks.train_model()

    done = newest(SiteFigures)
    assert (done.status, done.error) == ("done", None)
    (figures,) = done.figures
    assert figures["version_id"] == version.id
    assert (figures["all"]["scans"], figures["all"]["with_hemorrhage"]) == (3, 2)
    # Each of two drawn ones stands for 15, since one of three was not reviewed; one was chosen.
    assert figures["all"]["represented"] == pytest.approx(31)
    assert figures["all"]["metrics"]["sensitivity"]["value"] == pytest.approx(15 / 16)
    assert figures["all"]["metrics"]["specificity"]["value"] == 0
    (month,) = figures["months"]
    assert month["scans"] == 3
    notes = " ".join(figures["notes"])
    assert "1 of the 3 confirmed scans were chosen by readers" in notes
    assert "1 confirmed scans are excluded because this version" in notes
    assert "2 scans that this version analyzed" in notes


def test_the_number_of_statements_does_not_grow_with_the_confirmed_scans(
    site: Flask, tmp_path: Path
) -> None:
    version = install_model()
    sent: dict[str, list[int]] = {"archive": [], "figures": []}
    for more in (1, 5):
        for _ in range(more):
            add_answered(version, PRESENT)
        began_with = f"version:{version.id}"
        run = TrainingRun(architecture="x", settings={}, seed=0, initial_weights=began_with)
        db.session.add(run)
        db.session.flush()
        version = install_model()
        version.run_id = run.id
        db.session.commit()
        add_answered(version, ABSENT)
        dataset, _ = request_dataset(f"{more}", Filter(), person("bob"))
        request_figures(None)
        with statements() as of_archive, pytest.raises(DatasetError, match="None of the"):
            make_archive(dataset, tmp_path, lambda *_: None)
        sent["archive"].append(len(of_archive))
        with statements() as of_figures:
            assert compute_next_figures()
        sent["figures"].append(len(of_figures))
    assert sent["archive"][0] == sent["archive"][1] <= 6
    assert sent["figures"][0] == sent["figures"][1] <= 14


def store_calibratable() -> ModelVersion:
    """Store a version whose decision is the brightness of the picture; one half from a gray of .5
    on.
    """
    tuned = Tuned({}, np.array([12.0], np.float32), float(np.log(10 / 64) - 6.0), "a test")
    graph = head_to_onnx(tuned, Platt(1.0, 0.0), Platt(2.0, 0.5), CELLS, 1, smooths=False)
    seen = json.dumps({"features": [], "head": []}).encode()
    files: dict[str, bytes | Path] = {
        "features.onnx": features_graph(),
        "head.onnx": graph,
        "seen.json": seen,
    }
    version_id = new_id()
    prefix = f"models/{version_id}"
    with tempfile.TemporaryDirectory() as folder:
        card = write_model(Path(folder) / "model", a_card(), files)
        for path in (Path(folder) / "model").iterdir():
            storage.put(f"{prefix}/{path.name}", path)
    version = ModelVersion(
        id=version_id,
        card_id=card.id,
        architecture=card.architecture,
        reads="slice",
        storage_prefix=prefix,
        card={"id": card.id},
    )
    version.operating_point = OperatingPoint("sensitive", 0.3, None)
    db.session.add(version)
    db.session.flush()
    db.session.add(Promotion(version_id=version_id, reads="slice", reason="A test."))
    db.session.commit()
    return version


def test_a_version_is_calibrated_to_the_site_as_a_version_of_its_own(
    site: Flask, tmp_path: Path
) -> None:
    before = store_calibratable()
    random = np.random.default_rng(0)
    root = write_site(
        tmp_path / "set",
        [(label, random.uniform(*((0.7, 0.9) if label else (0.5, 0.68)))) for label in [0, 1] * 20],
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root))
    dataset = Dataset(name="ours", archive_key="datasets/1.zip", fingerprint="f")
    storage.put(dataset.archive_key, content.getvalue())
    db.session.add(dataset)
    db.session.commit()
    with pytest.raises(RequestRefused, match="ready"):
        request_calibration(before, dataset, person("bob"))
    dataset.status = JobStatus.DONE
    db.session.commit()
    request_calibration(before, dataset, person("bob"))

    tasks.train_model()

    run = newest(TrainingRun)
    assert (run.status, run.error) == ("done", None)
    version = newest(ModelVersion)
    assert version.run_id == run.id and version.card_id != before.card_id
    local = version.card["data"]["local_calibration"]
    assert local["model"] == before.card_id and local["dataset"] == "ours"
    specificity = [local["slice"][when]["specificity"]["value"] for when in ("before", "after")]
    assert specificity[0] < specificity[1]
    assert version.blocked_because is None and version.canary is not None
    assert version.operating_point == OperatingPoint("own thresholds", 0.3, None)


def test_too_few_scans_to_calibrate_are_a_sentence(site: Flask, tmp_path: Path) -> None:
    before = store_calibratable()
    root = write_site(tmp_path / "set", [(0, 0.55), (1, 0.8)])
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root))
    dataset = Dataset(name="few", archive_key="datasets/1.zip", status=JobStatus.DONE)
    storage.put(dataset.archive_key, content.getvalue())
    db.session.add(dataset)
    db.session.commit()
    request_calibration(before, dataset, person("bob"))
    tasks.train_model()
    run = newest(TrainingRun)
    assert run.status == "failed" and "A calibration needs at least 20 scans" in run.error
