"""Requests that schemathesis makes of the OpenAPI document, such as it allows and such as it does
not.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import hypothesis
import schemathesis
from hypothesis import strategies
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok

from bench.fuzz.service import Service, Tally
from tests.webapp.intake.made import nifti_file, picture, png_of
from webapp.config import PROJECT_ROOT
from worker.heat_maps import draw_next_heatmap
from worker.prediction import answer_next_scans

DOCUMENT = "/api/v1/openapi.json"


def ask_everything(given: Service, requests: int, seed: int, tally: Tally) -> None:
    """Send so many requests of each operation in each of two ways; every answer must be such as the
    document says, and none 500 or more.
    """
    config = SchemathesisConfig.from_path(PROJECT_ROOT / "schemathesis.toml")
    schema = schemathesis.openapi.from_wsgi(DOCUMENT, given.app, config=config)
    for found in schema.get_all_operations():
        if not isinstance(found, Ok):
            tally.broken.append(f"the OpenAPI document is not understood: {found.err()}")
            continue
        # Afresh: the operation before may have deleted them.
        operation, scans = found.ok(), _scans(given)
        for mode in GenerationMode:

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=requests,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(
                case=operation.as_strategy(generation_mode=mode),
                scan_id=strategies.none() | strategies.sampled_from(scans),
            )
            def ask(case: Case[Any], scan_id: str | None) -> None:
                if scan_id is not None and "scan_id" in case.path_parameters:
                    case.path_parameters["scan_id"] = scan_id
                headers = {"Authorization": f"Bearer {given.token}"}
                answer = case.call(headers=headers)
                tally.statuses[case.operation.label, answer.status_code] += 1
                try:
                    case.validate_response(answer, headers=headers)
                except FailureGroup as group:
                    tally.broken += [
                        f"{case.operation.label} ({answer.status_code}): {failure.title}"
                        for failure in group.exceptions
                    ]

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ask()


def _scans(given: Service) -> list[str]:
    """Return the ids of a slice and a series with verdict and heat maps, of a scan that failed, and
    of one that waits.
    """
    client, ids = given.client(), []

    def send(content: bytes) -> None:
        ids.append(
            client.post("/api/v1/scans", data={"file": (io.BytesIO(content), "1")}).get_json()["id"]
        )

    for content in (picture(), nifti_file(), png_of(64, 64)):
        send(content)
    with given.app.app_context():
        while answer_next_scans() or draw_next_heatmap():
            pass
    send(picture())
    return ids
