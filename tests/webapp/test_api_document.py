"""The OpenAPI document and the API agree: schemathesis makes requests of the one and checks the
other's answers, with all of its checks.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import schemathesis
from flask import Flask
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.schemas import OpenApiSchema
from sqlalchemy import select

from bench.fuzz.cases import for_each_case, schema_of
from tests.conftest import PASSWORD, app_on, make_user
from tests.webapp.admin.conftest import add_dataset, add_run, add_version
from tests.webapp.admin.test_evaluations import evaluated
from tests.webapp.admin.test_images import indexed
from tests.webapp.series import heat, stored_series
from tests.webapp.test_api import make_token
from tests.webapp.test_every_route import site_figures_of
from webapp.api.examples import EXAMPLES, FORMS
from webapp.extensions import db, utc_now
from webapp.models import (
    Attempt,
    Comparison,
    Finding,
    Heatmap,
    JobStatus,
    ModelVersion,
    Opinion,
    Prediction,
    ReplaySample,
    ResultDelivery,
    Role,
    Scan,
    Shadow,
    Share,
    SiteFigures,
    User,
    new_id,
    promote,
)
from webapp.scans.pictures import heatmap_key
from webapp.storage import storage

REQUESTS = 6
"""Requests of each operation in each way: such as the document allows, and such as it does not."""
OPERATIONS = {
    "apply_corrections",
    "calibrate_model",
    "cancel_delivery",
    "cancel_evaluation",
    "cancel_import",
    "cancel_paper_experiment",
    "cancel_replays",
    "cancel_run",
    "cancel_scan",
    "change_scans",
    "choose_notifications",
    "compare_datasets",
    "compare_with_live",
    "compute_site_figures",
    "correct_label",
    "cut_scan",
    "delete_dataset",
    "delete_scan",
    "delete_user",
    "describe_run",
    "disable_user",
    "draw_accuracy_graph",
    "draw_heatmap",
    "draw_replays",
    "enable_user",
    "end_share",
    "evaluate_model",
    "export_accuracy_figures",
    "export_scans",
    "find_out_promotion",
    "give_opinion",
    "import_dataset",
    "index_images",
    "join_scans",
    "launch_paper_experiment",
    "launch_run",
    "list_accuracy_figures",
    "list_architectures",
    "list_changed_results",
    "list_comparisons",
    "list_corrections",
    "list_dataset_images",
    "list_datasets",
    "list_deliveries",
    "list_disagreements",
    "list_earlier",
    "list_evaluations",
    "list_events",
    "list_messages",
    "list_models",
    "list_notification_choices",
    "list_opinions",
    "list_paper_experiments",
    "list_promotions",
    "list_received_studies",
    "list_replay_samples",
    "list_runs",
    "list_scan_replays",
    "list_scans",
    "list_shadows",
    "list_shares",
    "list_unlike_replays",
    "list_users",
    "live_models",
    "make_confirmed_dataset",
    "make_report",
    "preview_split",
    "promote_model",
    "read_checklist",
    "read_contact_sheet",
    "read_dataset",
    "read_dataset_image",
    "read_dataset_picture",
    "read_dataset_thumbnail",
    "read_evaluation",
    "read_evaluation_answers",
    "read_heatmap",
    "read_image",
    "read_mistake",
    "read_mistake_heatmap",
    "read_model",
    "read_operations",
    "read_outline",
    "read_outline_mask",
    "read_paper_experiment",
    "read_promotion",
    "read_question",
    "read_replay_sample",
    "read_report",
    "read_review_queue",
    "read_run",
    "read_run_log",
    "read_scan",
    "read_shadow",
    "read_site",
    "read_site_figures",
    "read_slice_heatmap",
    "read_slice_image",
    "read_slice_outline",
    "read_threshold",
    "read_thumbnail",
    "read_token",
    "read_version_mistake",
    "read_version_mistake_heatmap",
    "read_volume",
    "reproduce_scan",
    "resume_paper_experiment",
    "retry_delivery",
    "retry_evaluation",
    "retry_question",
    "retry_run",
    "retry_scan",
    "roll_back",
    "score_scan_again",
    "score_scan_anyway",
    "send_test_messages",
    "set_role",
    "share_scan",
    "split_scan",
    "start_shadow",
    "stop_shadow",
    "submit_scans",
    "withdraw_opinion",
}
"""Generated clients call them by these names, so none is renamed."""


@dataclass(frozen=True)
class Service:
    """An application with a scan in every state, asked by its owner. Schemathesis changes examples
    within the schema's document while it generates requests; `document` stays as it is.
    """

    app: Flask
    token: str
    user_id: str
    schema: OpenApiSchema
    document: dict[str, Any]

    def add_scans(self) -> list[str]:
        """Add scans in every state; return their ids."""
        with self.app.app_context():
            version = ModelVersion(
                card_id=f"card-{utc_now().timestamp()}",
                architecture="alexnet_svm",
                reads="series",
                storage_prefix="models/none",
                card={},
            )
            scans = [self.scan(status) for status in JobStatus]
            scans.append(self.scan(JobStatus.FAILED, error="No head.", not_head_ct=0.9))
            scans.append(self.scan(JobStatus.QUEUED, original_removed_at=utc_now()))
            done = next(scan for scan in scans if scan.status == JobStatus.DONE)
            done.slice_count, done.finished_at = 2, utc_now()
            done.image_key, done.volume_key = "images/1.png", "volumes/1.nii.gz"
            done.history = [Attempt(ended_at=utc_now(), outcome="The worker stopped.")]
            done.prediction = Prediction(
                model_version=version,
                probability=0.75,
                threshold=0.5,
                positive=True,
                uncertain=False,
                warnings=["Small."],
                slices=[0.75, 0.25],
                first_slices=[0],
                types={"subdural": {"probability": 0.5, "threshold": 0.5, "slices": [0.5, 0.1]}},
                seconds=0.1,
            )
            drawn = Heatmap(status=JobStatus.DONE, image_key="heatmaps/1.png", slices=[0])
            done.prediction.heatmap = drawn
            db.session.add_all([version, *scans])
            db.session.flush()
            opinion = Opinion(scan_id=done.id, author_id=self.user_id, finding=Finding.PRESENT)
            done.verdict_state, done.risk = "suspected", 0.75
            db.session.add_all([opinion, Share(scan_id=done.id)])
            for key in (done.image_key, drawn.image_key):
                storage.put(key, b"a picture")
            storage.put(done.volume_key, stored_series(np.zeros((2, 4, 4))))
            storage.put(heatmap_key(drawn.id, 0), heat(0))
            db.session.commit()
            return [scan.id for scan in scans]

    def add_rows(self) -> dict[str, list[str]]:
        """Add what else there is; return ids by the name of their parameter."""
        with self.app.app_context():
            other = User(username=f"user-{new_id()}", password=PASSWORD)
            versions = [
                add_version(new_id()[:12], run_id=None, checked_at=utc_now()) for _ in range(2)
            ]
            promote(db.session.get_one(ModelVersion, versions[0]), self.user_id, "A reason.")
            datasets = [add_dataset(new_id(), status) for status in JobStatus]
            runs = [add_run(status) for status in JobStatus]
            db.session.add_all(
                [other, Comparison(version_id=versions[1], other_id=versions[0], results=[])]
            )
            db.session.flush()
            if db.session.scalar(select(Shadow.id).where(Shadow.ended_at.is_(None))) is None:
                db.session.add(
                    Shadow(version_id=versions[1], against_id=versions[0], reads="slice")
                )
            ready = datasets[list(JobStatus).index(JobStatus.DONE)]
            question = indexed(ready)
            sample = ReplaySample(requested_by_id=self.user_id)
            sent = self.scan(JobStatus.DONE)
            db.session.add_all([sample, sent])
            db.session.flush()
            delivery = ResultDelivery(
                user_id=self.user_id, scan_id=sent.id, destination="pacs", status=JobStatus.FAILED
            )
            db.session.add(delivery)
            db.session.commit()
            return {
                "shadow_id": list(db.session.scalars(select(Shadow.id))),
                "sample_id": [sample.id],
                "delivery_id": [delivery.id],
                "question_id": [question],
                "version_id": versions,
                "dataset_id": datasets,
                "run_id": runs,
                "evaluation_id": [evaluated(versions[0], datasets[0])],
                "user_id": [other.id],
            }

    def scan(self, status: JobStatus, **columns: Any) -> Scan:
        """Return a scan of the owner."""
        return Scan(
            user_id=self.user_id,
            kind="nifti",
            original_key="originals/none.nii.gz",
            status=status,
            **columns,
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that all operations of this module ask."""
    home = tmp_path_factory.mktemp("home")
    app = app_on(f"sqlite:///{home / 'test.db'}", home)
    user_id = make_user(app, "ann", Role.ADMIN)
    with app.app_context():
        figures = [site_figures_of("0" * 32)]
        db.session.add(SiteFigures(status=JobStatus.DONE, finished_at=utc_now(), figures=figures))
        db.session.commit()
    schema = schema_of(app)
    document = deepcopy(schema.raw_schema)
    yield Service(app, make_token(app, user_id), user_id, schema, document)
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def test_every_operation_has_an_id(service: Service) -> None:
    paths = service.document["paths"].values()
    given = [
        operation.get("operationId")
        for path in paths
        for method, operation in path.items()
        if method != "parameters"
    ]
    assert len(given) == len(set(given)) and set(given) == OPERATIONS


def test_a_result_is_a_verdict_or_null(service: Service) -> None:
    scan = service.document["components"]["schemas"]["Scan"]
    assert scan["properties"]["result"] == {
        "anyOf": [{"$ref": "#/components/schemas/Result"}, {"type": "null"}]
    }


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation_id", sorted(OPERATIONS))
def test_every_answer_is_as_the_document_says(
    service: Service, operation_id: str, mode: GenerationMode
) -> None:
    operation = service.schema.find_operation_by_id(operation_id)
    # New ones, since the previous operation may have deleted them.
    ids = {"scan_id": service.add_scans(), **service.add_rows()}
    statuses: set[int] = set()

    def ask(case: Case[Any]) -> None:
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {service.token}"})
        statuses.add(answer.status_code)

    for_each_case(operation, mode, ask, requests=REQUESTS, seed=1, ids=ids)
    assert statuses


def test_what_is_answered_of_a_scan_in_any_state_is_what_its_schema_says(service: Service) -> None:
    client = service.app.test_client()
    headers = {"Authorization": f"Bearer {service.token}"}
    results = []
    for scan_id in service.add_scans():
        answer = client.get(f"/api/v1/scans/{scan_id}", headers=headers)
        service.schema["/api/v1/scans/{scan_id}"]["GET"].validate_response(
            schemathesis.Response.from_any(answer)
        )
        results.append(answer.json["result"])
    assert sum(result is not None for result in results) == 1


def test_every_body_has_an_example_that_its_schema_allows(service: Service) -> None:
    document = service.document
    seen = set()
    for path in document["paths"].values():
        for method, operation in path.items():
            if method == "parameters":
                continue
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for media, content in [
                pair for body in bodies for pair in body.get("content", {}).items()
            ]:
                if "json" not in media and media != "multipart/form-data":
                    continue
                schema = {**content["schema"], "components": document["components"]}
                jsonschema.validate(
                    content["example"],
                    schema,
                    jsonschema.Draft202012Validator,
                    format_checker=jsonschema.FormatChecker(),
                )
                reference = content["schema"].get("$ref", operation["operationId"])
                seen.add(reference.rsplit("/", 1)[-1])
    assert seen == EXAMPLES.keys() | FORMS.keys() | {"Problem"}


def test_openapi_python_client_makes_a_client_of_the_document(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(service.document))
    files = (
        *("image/png", "image/jpeg", "image/svg+xml"),
        *("application/gzip", "application/pdf", "application/dicom"),
    )
    settings = {
        "content_type_overrides": dict.fromkeys(files, "application/octet-stream"),
        "post_hooks": [],  # It would format its code.
        "package_name_override": "generated_client",  # Ours has the other name.
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    made = subprocess.run(
        [*command, "--path", "openapi.json", "--config", "settings.json", "--meta", "none"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    monkeypatch.syspath_prepend(tmp_path)
    list_scans = importlib.import_module("generated_client.api.scans.list_scans")
    client = importlib.import_module("generated_client").AuthenticatedClient(
        base_url="http://localhost", token=service.token
    )
    client.set_httpx_client(
        httpx.Client(
            base_url="http://localhost",
            transport=httpx.WSGITransport(app=service.app),
            headers={"Authorization": f"Bearer {service.token}"},
        )
    )
    [scan_id, *_] = service.add_scans()
    page = list_scans.sync(client=client, limit=100)
    assert scan_id in [scan.id for scan in page.items]
