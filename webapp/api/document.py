"""What the OpenAPI document says about all operations: examples, headers and conventions."""

from __future__ import annotations

from typing import Any

from apispec import APISpec, BasePlugin

from webapp.api.examples import EXAMPLES, FORMS, PROBLEMS
from webapp.api.idempotency import HEADER, REPLAYED
from webapp.models.idempotency import KEEP_H

PARAMETERS = {
    "IfNoneMatch": {
        "name": "If-None-Match",
        "schema": {"type": "string"},
        "example": '"c1f0d9a3"',
        "description": "The `ETag` of an earlier response; 304 if nothing has changed.",
    },
    "IdempotencyKey": {
        "name": HEADER,
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
        "description": (
            "A unique string of your choice, such as a UUID, for one operation. If a request is"
            f" resent with its key within {KEEP_H} hours, it is executed only once and returns"
            f" the first response, with the header `{REPLAYED}`. 409 with `Retry-After` while the"
            " first is still being processed; 422 if the key was used for another request."
        ),
    },
}
LINK = {
    "schema": {"type": "string"},
    "description": 'The next page, `<…>; rel="next"`; absent on the last page.',
}
RETRY_AFTER = {
    "schema": {"type": "integer"},
    "description": "Seconds to wait before trying again.",
}
ALWAYS = {
    "X-RateLimit-Limit": {"schema": {"type": "integer"}, "description": "Requests per minute."},
    "X-RateLimit-Remaining": {"schema": {"type": "integer"}, "description": "Requests left."},
    "X-RateLimit-Reset": {
        "schema": {"type": "integer"},
        "description": "When the minute ends, in seconds since 1970.",
    },
}
GROUPS = {
    "scans": "submit, track, change and read",
    "pictures": "images, volumes, heat maps and outlines of a scan",
    "reports": "results as PDF and DICOM objects",
    "opinions": "opinions, sharing, and the review queue",
    "tokens": "what your token may do",
    "notifications": "which results you are notified of, and how",
    "models": "model versions, promotions and comparisons with the live version",
    "shadows": "candidate versions that analyze live scans in shadow mode",
    "replays": "past results, recomputed",
    "evaluations": "versions tested on data sets and compared",
    "runs": "training and calibration",
    "datasets": "labeled images",
    "dataset_images": "their images one by one, corrected labels, splits and differences",
    "papers": "accuracy graphs, and the paper's experiment",
    "site": "confirmed scans and the figures on them",
    "deliveries": "studies received over DICOM and results sent to archives",
    "operations": "queues, workers, users and the audit log",
}
"""The groups of operations, by the name of their module, in reading order."""
INTRODUCTION = f"""\
Brain hemorrhage detection on head CT. Research use only, never a diagnosis.

**Tokens.** Send `Authorization: Bearer TOKEN`. Create a token on your account page, or with
`flask --app webapp create-token`. It expires, and has *scopes*: `read` (scans, results, reports),
`submit` (send scans; change, share and delete your own; choose notifications), `review` (opinions,
the review queue) and `admin` (models, data sets, training, users; administrators only). Each
operation states the scope it needs; without it, the response is 403.

**Errors** are `application/problem+json` (RFC 9457); `detail` is a sentence to show to users.

**Lists** have `items` and `next`, the address of the next page (null on the last one), also as
`Link: <…>; rel="next"`. `limit` sets the length of a page.

**Retries.** Give each POST an `{HEADER}`. If no response arrives, resend the request with the same
key: it is executed only once and returns the same response.

**Polling.** Responses to GETs have an `ETag`. Send it as `If-None-Match` to get 304 while nothing
has changed.

**Limits.** `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` say how many
requests are left. 429 and 503 come with `Retry-After`.
"""


class Conventions(BasePlugin):
    """Adds examples, and the headers that many operations share, to each operation."""

    def init_spec(self, spec: APISpec) -> None:
        """Add the components that operations refer to."""
        for name, parameter in PARAMETERS.items():
            spec.components.parameter(name, "header", {"required": False, **parameter})
        for name, header in {"Link": LINK, "RetryAfter": RETRY_AFTER, **ALWAYS}.items():
            spec.components.header(name, header)

    def operation_helper(
        self, path: str | None = None, operations: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Complete the operations of a path."""
        for method, operation in (operations or {}).items():
            reference = {"get": "IfNoneMatch", "post": "IdempotencyKey"}.get(method)
            if reference:
                of_all = operation.setdefault("parameters", [])
                of_all.append(reference)
            scopes = operation["security"][0]["token"]
            needs = f"Needs the scope `{scopes[0]}`." if scopes else "Any valid token will do."
            operation["description"] = f"{operation.get('description', '')}\n\n{needs}".strip()
            body = operation.get("requestBody", {})
            add_example(body, EXAMPLES)
            for media, content in body.get("content", {}).items():
                if media == "multipart/form-data":
                    content["example"] = FORMS[operation["operationId"]]
            for status, response in operation["responses"].items():
                complete(str(status), response)


def complete(status: str, response: dict[str, Any]) -> None:
    """Add an example and the headers to a response."""
    add_example(response, {"Problem": problem_example(status), **EXAMPLES})
    headers = response.setdefault("headers", {})
    for name in ALWAYS:
        headers[name] = {"$ref": f"#/components/headers/{name}"}
    if status in ("202", "409", "429", "503"):
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    if status == "200" and _schema_name(response) in LISTS:
        headers["Link"] = {"$ref": "#/components/headers/Link"}


def problem_example(status: str) -> dict[str, Any]:
    """Return an error as an example."""
    title, detail = PROBLEMS.get(status, ("Not ready", "Not ready yet."))
    return {"type": "about:blank", "title": title, "status": int(status), "detail": detail}


def add_example(holder: dict[str, Any], examples: dict[str, Any]) -> None:
    """Add the example of its schema to each JSON body."""
    for media, content in holder.get("content", {}).items():
        name = _name_in(content)
        if "json" in media and name is not None:
            content["example"] = examples[name]


def _schema_name(response: dict[str, Any]) -> str | None:
    return next(filter(None, map(_name_in, response.get("content", {}).values())), None)


def _name_in(content: dict[str, Any]) -> str | None:
    reference = content.get("schema", {}).get("$ref")
    return reference.rsplit("/", 1)[-1] if reference else None


LISTS = frozenset(name for name, example in EXAMPLES.items() if {"items", "next"} <= example.keys())
