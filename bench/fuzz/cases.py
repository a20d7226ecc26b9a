"""Requests that schemathesis generates from the OpenAPI document, reproducible by a seed."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
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
KEY = "Idempotency-Key"
ID_CHARACTERS = 32


def schema_of(app: Flask) -> OpenApiSchema:
    """Return the schema in the application's OpenAPI document."""
    config = SchemathesisConfig.from_path(PROJECT_ROOT / "schemathesis.toml")
    return schemathesis.openapi.from_wsgi(DOCUMENT, app, config=config)


def for_each_case(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    check: Callable[[Case[Any]], None],
    *,
    requests: int,
    seed: int,
    ids: Mapping[str, Sequence[Any]],
) -> None:
    """Call `check` with `requests` generated requests for an operation, valid or invalid according
    to the document; most use some of the `ids` for the parameters and properties with their names.

    Each valid request has its own `Idempotency-Key`: generated keys would soon repeat.
    """
    known = strategies.fixed_dictionaries(
        {name: strategies.sampled_from(list(values)) for name, values in ids.items()}
    )
    chosen = strategies.one_of(known, known, known, strategies.none())

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
        there_are=chosen,
    )
    def run(case: Case[Any], there_are: Mapping[str, str] | None) -> None:
        for name in case.path_parameters.keys() & (there_are or {}).keys():
            value = (there_are or {})[name]
            # In an invalid request the number may be what is invalid.
            if mode is GenerationMode.POSITIVE or len(value) == ID_CHARACTERS:
                case.path_parameters[name] = value
        if mode is GenerationMode.POSITIVE and there_are:
            for part in (case.query, case.body):
                _name_rows(part, there_are)
        if mode is GenerationMode.POSITIVE and KEY in case.headers:
            case.headers[KEY] = uuid.uuid4().hex
        check(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Generated values are unusual on purpose.
        run()


def _name_rows(values: object, there_are: Mapping[str, Any]) -> None:
    """Put ids that exist, and valid files, into a query or a body."""
    if not isinstance(values, dict):
        return
    for name in values:
        single = "scan_id" if name == "ids" else name.removesuffix("s")
        if name == "file" and name in there_are:
            values[name] = [there_are[name]]
        elif single != name and single in there_are:
            values[name] = [there_are[single]]
        elif (known := there_are.get(f"{name}_id", there_are.get(name))) is not None:
            values[name] = known
