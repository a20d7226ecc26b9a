"""Requests that schemathesis generates from the OpenAPI document, reproducible by a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import schemathesis
from flask import Flask
from hypothesis import strategies
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.schemas import OpenApiSchema

from webapp.config import PROJECT_ROOT

DOCUMENT = "/api/v1/openapi.json"


def schema_of(app: Flask) -> OpenApiSchema:
    """Return what the application's OpenAPI document says."""
    config = SchemathesisConfig.from_path(PROJECT_ROOT / "schemathesis.toml")
    return schemathesis.openapi.from_wsgi(DOCUMENT, app, config=config)


def for_each_case(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    check: Callable[[Case[Any]], None],
    *,
    requests: int,
    seed: int,
    scan_ids: Sequence[str],
) -> None:
    """Call `check` with `requests` generated requests of an operation: such as the document allows,
    or such as it does not; some of them for one of `scan_ids`.
    """

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
        scan_id=strategies.none() | strategies.sampled_from(list(scan_ids)),
    )
    def run(case: Case[Any], scan_id: str | None) -> None:
        if scan_id is not None and "scan_id" in case.path_parameters:
            case.path_parameters["scan_id"] = scan_id
        check(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Generated values are odd on purpose.
        run()
