"""The OpenAPI document and the API agree: schemathesis makes requests of the one and checks the
other's answers, with all of its checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import schemathesis
from flask import Flask
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.schemas import OpenApiSchema

from bench.fuzz.cases import for_each_case, schema_of
from tests.conftest import app_on, make_user
from tests.webapp.series import heat, stored_series
from tests.webapp.test_api import make_token
from tests.webapp.test_every_route import site_figures_of
from webapp.extensions import db, utc_now
from webapp.models import (
    Attempt,
    Finding,
    Heatmap,
    JobStatus,
    ModelVersion,
    Opinion,
    Prediction,
    Role,
    Scan,
    Share,
    SiteFigures,
)
from webapp.pictures import heatmap_key
from webapp.storage import storage

EXAMPLES = 8
"""Requests of each operation in each way: such as the document allows, and such as it does not."""
OPERATIONS = {
    "submit_scans",
    "list_scans",
    "live_models",
    "read_scan",
    "delete_scan",
    "score_scan_anyway",
    "score_scan_again",
    "cancel_scan",
    "retry_scan",
    "read_image",
    "read_heatmap",
    "read_volume",
    "read_slice_image",
    "read_slice_heatmap",
    "list_opinions",
    "give_opinion",
    "withdraw_opinion",
    "list_shares",
    "share_scan",
    "end_share",
    "read_review_queue",
    "read_site_figures",
    "make_report",
    "read_report",
    "draw_heatmap",
    "read_outline",
    "read_slice_outline",
    "read_outline_mask",
}


@dataclass(frozen=True)
class Service:
    """An application with a scan in every state, asked by its owner."""

    app: Flask
    token: str
    user_id: str
    schema: OpenApiSchema

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
            said = Opinion(scan_id=done.id, author_id=self.user_id, finding=Finding.PRESENT)
            done.verdict_state, done.risk = "suspected", 0.75
            db.session.add_all([said, Share(scan_id=done.id)])
            for key in (done.image_key, drawn.image_key):
                storage.put(key, b"a picture")
            storage.put(done.volume_key, stored_series(np.zeros((2, 4, 4))))
            storage.put(heatmap_key(drawn.id, 0), heat(0))
            db.session.commit()
            return [scan.id for scan in scans]

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
    yield Service(app, make_token(app, user_id), user_id, schema_of(app))
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def test_every_operation_has_an_id(service: Service) -> None:
    paths = service.schema.raw_schema["paths"].values()
    given = [
        operation.get("operationId")
        for path in paths
        for method, operation in path.items()
        if method != "parameters"
    ]
    assert len(given) == len(set(given)) and set(given) == OPERATIONS


def test_a_result_is_a_verdict_or_null(service: Service) -> None:
    scan = service.schema.raw_schema["components"]["schemas"]["Scan"]
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
    scans = service.add_scans()
    statuses: set[int] = set()

    def ask(case: Case[Any]) -> None:
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {service.token}"})
        statuses.add(answer.status_code)

    for_each_case(operation, mode, ask, requests=EXAMPLES, seed=1, scan_ids=scans)
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
