"""What the JSON API takes and tells: the schemas of its OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, fields, pre_load, validate

from webapp.models import JobStatus, Order

SHARE = validate.Range(0, 1)
COUNT = validate.Range(0)


def address(**arguments: Any) -> fields.Url:
    """Return the field of an address, under the name that JSON Schema has for its form."""
    metadata = {**arguments.pop("metadata", {}), "format": "uri"}
    return fields.Url(required=True, metadata=metadata, **arguments)


class ProblemSchema(Schema):
    """An error (RFC 9457); `detail` is a sentence for a person."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)


class JobSchema(Schema):
    """A scan that was accepted."""

    id = fields.String(required=True)
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)
    url = address(metadata={"description": "Where to poll."})


class SubmissionSchema(JobSchema):
    """What was accepted; the first three fields are those of the first scan."""

    scans = fields.List(fields.Nested(JobSchema), required=True)


class ModelVersionSchema(Schema):
    """The model version that answered."""

    id = fields.String(required=True)
    architecture = fields.String(required=True)


class SliceSchema(Schema):
    """One slice's probability of hemorrhage; slices count from 0 in anatomical order."""

    index = fields.Integer(required=True, validate=COUNT)
    probability = fields.Float(required=True, validate=SHARE)
    types = fields.Dict(
        keys=fields.String(),
        values=fields.Float(validate=SHARE),
        required=True,
        metadata={
            "description": (
                "The probability of each type of bleeding in this slice, as far as the model tells"
                " any."
            )
        },
    )


class ResultSchema(Schema):
    """The verdict on a scan. Research use, never a diagnosis."""

    verdict = fields.String(required=True)
    positive = fields.Boolean(required=True)
    uncertain = fields.Boolean(
        required=True, metadata={"description": "The probability lies close to the threshold."}
    )
    probability = fields.Float(required=True, validate=SHARE)
    threshold = fields.Float(required=True, validate=SHARE)
    warnings = fields.List(fields.String(), required=True)
    model_version = fields.Nested(ModelVersionSchema, required=True)
    types = fields.Dict(
        keys=fields.String(),
        values=fields.Float(validate=SHARE),
        required=True,
        metadata={
            "description": (
                "The probability of each type of bleeding, as far as the model tells any. They are"
                " less certain than the verdict, and none is above `probability`."
            )
        },
    )
    slices = fields.List(fields.Nested(SliceSchema), required=True)
    first_slices = fields.List(
        fields.Integer(validate=COUNT),
        required=True,
        metadata={
            "description": "Which slices of a series to look at first; empty for a single slice."
        },
    )
    heatmap_slices = fields.List(
        fields.Integer(validate=COUNT),
        required=True,
        metadata={"description": "Which slices of a series have a heat map by now."},
    )
    heatmap_url = address(
        allow_none=True,
        metadata={
            "description": "A PNG over the image, drawn after the verdict; null if it could not be."
        },
    )


class AttemptSchema(Schema):
    """How an earlier attempt at a scan ended."""

    started_at = fields.AwareDateTime(required=True, allow_none=True)
    ended_at = fields.AwareDateTime(required=True)
    outcome = fields.String(required=True)


class ScanSchema(Schema):
    """A scan: `result` is null until `status` is done, `error` is a sentence where it is failed."""

    id = fields.String(required=True)
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)
    progress = fields.Float(required=True, validate=SHARE)
    error = fields.String(required=True, allow_none=True)
    title = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(("png", "jpeg", "dicom", "nifti")))
    slice_count = fields.Integer(
        required=True,
        validate=validate.Range(1),
        metadata={"description": "How many slices were submitted for it."},
    )
    stat = fields.Boolean(required=True)
    notes = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "What was found while it was taken in."},
    )
    created_at = fields.AwareDateTime(required=True)
    finished_at = fields.AwareDateTime(required=True, allow_none=True)
    original_removed_at = fields.AwareDateTime(
        required=True,
        allow_none=True,
        metadata={
            "description": "When the submitted file was too old to be kept; null while it is kept."
        },
    )
    score_anyway_url = address(
        allow_none=True,
        metadata={
            "description": (
                "POST here to have it scored although it does not look like a head CT; null unless"
                " it was refused for that."
            )
        },
    )
    earlier_attempts = fields.List(fields.Nested(AttemptSchema), required=True)
    result = fields.Nested(ResultSchema, required=True, allow_none=True)


class ScansQuerySchema(Schema):
    """Which page of the scans to list."""

    page = fields.Integer(load_default=1, validate=validate.Range(1, 1_000_000))
    per_page = fields.Integer(load_default=20, validate=validate.Range(1, 100))
    status = fields.Enum(JobStatus, by_value=fields.String, load_default=None)
    order = fields.Enum(
        Order,
        by_value=fields.String,
        load_default=Order.NEWEST,
        metadata={
            "description": (
                "risk: the highest probability first; uncertainty: what lies nearest its threshold"
                " first."
            )
        },
    )

    @pre_load
    def leave_out_what_is_empty(self, data: Mapping[str, str], **_: object) -> dict[str, str]:
        """`?status=` means any status."""
        return {name: value for name, value in data.items() if value}


class ScansPageSchema(Schema):
    """One page of scans; `total` counts the scans on all pages."""

    items = fields.List(fields.Nested(ScanSchema), required=True)
    page = fields.Integer(required=True, validate=validate.Range(1))
    per_page = fields.Integer(required=True, validate=validate.Range(1))
    total = fields.Integer(required=True, validate=COUNT)
