"""docker-compose.yml without containers: its services by their own commands and environments, each
in a folder of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from sqlalchemy import select

from tests.e2e.conftest import Service, an_empty_service
from tests.e2e.pictures import phantom_dataset, phantom_png
from tests.e2e.test_api_journey import ApiClient
from tests.listener.archives import free_port
from tests.listener.running import a_study
from webapp.config import PROJECT_ROOT
from webapp.extensions import db
from webapp.intake import accept_dataset
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import (
    Dataset,
    JobStatus,
    ModelVersion,
    Prediction,
    Scan,
    TrainingRun,
    User,
    Worker,
)

SERVICES: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "docker-compose.yml").read_text())[
    "services"
]
TWO_PREDICT = ("worker-predict-1", "worker-predict-2")
GIVEN = {"POSTGRES_PASSWORD": "a password", "SECRET_KEY": "not a secret"}
HOSTS = {
    "DATABASE_URL": "postgresql://hemoscan:a password@db/hemoscan",
    "BROKER_URL": "redis://redis:6379/0",
    "STORAGE_URL": "file:///files",
}
"""What the file says of where database, broker and files are: this test has them elsewhere."""
PATIENCE_S = 240
"""For anything that is waited for: a machine that is busy otherwise is slow, not broken."""


def environment(name: str, service: Service, container: str) -> dict[str, str]:
    """Return what a process of that container finds in its environment: of this machine's own only
    where programs are.
    """
    home = service.home / container
    home.mkdir()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    written = {
        setting: interpolated(str(value))
        for setting, value in SERVICES[name]["environment"].items()
    }
    assert HOSTS.items() <= written.items()
    here = {setting: service.settings[setting] for setting in HOSTS}
    return {
        "PATH": programs,
        "HOME": str(home),
        "HEMOSCAN_HOME": str(home),
        "PORT": service.environ["PORT"],
        **written,
        **here,
    }


def interpolated(text: str) -> str:
    """Return `text` as Compose reads it: `${NAME:?needed}` and `${NAME:-default}`."""
    return re.sub(
        r"\$\{(\w+):([?-])([^}]*)\}",
        lambda match: GIVEN[match[1]] if match[2] == "?" else match[3],
        text,
    )


def start(name: str, service: Service, container: str | None = None, **given: str) -> None:
    """Start a container of a service, some of whose settings are given."""
    container = container or name
    service.programs.start(
        container, SERVICES[name]["command"], {**environment(name, service, container), **given}
    )


def send_a_study(port: int) -> None:
    """Send a study to the listener as a scanner does, and once more, as if it was not sure."""
    ae = AE("CT1")
    ae.add_requested_context(CTImageStorage)
    study = a_study()
    for _ in range(2):
        association = ae.associate("127.0.0.1", port, ae_title="HEMOSCAN")
        assert [association.send_c_store(one).Status for one in study] == [0, 0, 0]
        association.release()


def have_ended(service: Service, table: type[Scan] | type[Dataset] | type[TrainingRun]) -> bool:
    """True if the table has rows and nothing more will happen to any."""
    with service.app.app_context():
        values = set(db.session.scalars(select(table.status)))
        return bool(values) and all(status.is_final for status in values)


def scans_from(service: Service, title: str) -> int:
    """Return how many scans with that title there are."""
    with service.app.app_context():
        return len(db.session.scalars(select(Scan.id).where(Scan.title == title)).all())


def is_open(port: int) -> bool:
    """True if something listens at that port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def live_workers(service: Service) -> Counter[str]:
    """Return how many workers of each queue have shown up and not signed off."""
    with service.app.app_context():
        return Counter(db.session.scalars(select(Worker.queue)))


def launch_training(service: Service, archive: Path) -> None:
    """Import a data set and, once it is read, queue a run on it, as the pages of the administration
    do.
    """

    def never() -> None:
        raise AssertionError("The broker cannot be reached.")

    with service.app.app_context():
        admin = db.session.scalars(select(User.id).where(User.username == "admin")).one()
        accept_dataset("phantoms", archive, admin, never)
    service.eventually(lambda: have_ended(service, Dataset), "The data set is read", PATIENCE_S)
    with service.app.app_context():
        dataset = db.session.scalars(select(Dataset)).one()
        assert dataset.status == JobStatus.DONE, dataset.error
        settings = {"folds": 2, "input_size": 160, "controls": "none"}
        db.session.add(
            TrainingRun(
                architecture="alexnet_svm",
                settings=settings,
                initial_weights="starter",
                seed=1,
                datasets=[dataset],
            )
        )
        db.session.commit()
        assert nudge(TRAIN_MODEL)


@pytest.mark.timeout(900)
def test_the_composed_services_answer_scans_and_train_a_version(
    tmp_path: Path, postgres_url: str
) -> None:
    with an_empty_service(tmp_path, postgres_url) as service:
        migrate = shlex.split(SERVICES["migrate"]["command"])
        subprocess.run(
            migrate,
            cwd=PROJECT_ROOT,
            env=environment("migrate", service, "migrate"),
            check=True,
            timeout=60,
        )
        for name in ("web", "worker-train", "beat"):
            start(name, service)
        for container in TWO_PREDICT:
            start("worker-predict", service, container)
        service.wait_until_ready()
        launch_training(service, phantom_dataset(tmp_path))

        with ApiClient(service, "ann") as ann:
            pictures = [phantom_png(tmp_path, seed, hemorrhage=seed % 2 == 0) for seed in range(6)]
            jobs = ann.hemoscan.submit(pictures[:4])
            # Either worker is enough.
            for held, picture in zip(TWO_PREDICT, pictures[4:], strict=True):
                # Both are there, and idle: what a paused worker has claimed waits for the end of
                # its lease, and a nudge that it takes for a sweep.
                service.eventually(
                    lambda: live_workers(service)["predict"] == 2,
                    "Both predict workers are there",
                    PATIENCE_S,
                )
                service.eventually(
                    lambda: have_ended(service, Scan), "All scans have verdicts", PATIENCE_S
                )
                with service.programs.paused(held):
                    jobs += ann.hemoscan.submit([picture])
                    (scan,) = ann.hemoscan.wait([jobs[-1].id], timeout_s=PATIENCE_S)
                    assert scan.status == "done"
            scans = ann.hemoscan.wait([job.id for job in jobs], timeout_s=PATIENCE_S)
            assert {scan.status for scan in scans} == {"done"}

        service.eventually(lambda: have_ended(service, TrainingRun), "The run ends", PATIENCE_S)
        with service.app.app_context():
            run = db.session.scalars(select(TrainingRun)).one()
            assert run.status == JobStatus.DONE, run.error
            assert db.session.scalars(
                select(ModelVersion.run_id).where(ModelVersion.run_id.is_not(None))
            ).all() == [run.id]
            answered = db.session.scalars(select(Prediction.scan_id)).all()
            assert sorted(answered) == sorted(job.id for job in jobs)
        port = free_port()
        peers = {"DICOM_PEERS": "CT1@127.0.0.1 account=ann stat", "DICOM_QUIET_S": "2"}
        start("dicom-listen", service, **peers, DICOM_PORT=str(port))
        service.eventually(lambda: is_open(port), "The listener listens", PATIENCE_S)
        send_a_study(port)
        service.eventually(
            lambda: have_ended(service, Scan) and scans_from(service, "CT1") == 1,
            "The study is one scan",
            PATIENCE_S,
        )
        # After each run the train worker has a new child, which takes a while to show up.
        everybody = {"predict": 2, "train": 1, "maintenance": 1}
        service.eventually(
            lambda: live_workers(service) == everybody, "Every worker is there", PATIENCE_S
        )
