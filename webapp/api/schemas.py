"""The schemas of the JSON API's requests and responses, and so of its OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from marshmallow import Schema, fields, pre_load, validate

from ml.catalogue import BLEEDING_TYPES
from ml.verdict import STATES
from webapp.forms import MAX_COMMENT, MAX_USERNAME
from webapp.models import Finding, JobStatus, Order, ReportKind
from webapp.review import REASONS

SHARE = validate.Range(0, 1)
COUNT = validate.Range(0)
RADIUS = validate.Range(0, 1, min_inclusive=False)


def address(**arguments: Any) -> fields.Url:
    """Return the field of an address, under the name that JSON Schema has for its form."""
    metadata = {**arguments.pop("metadata", {}), "format": "uri"}
    return fields.Url(required=True, metadata=metadata, **arguments)


class ProblemSchema(Schema):
    """An error (RFC 9457); `detail` is a sentence for people to read."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)


class JobSchema(Schema):
    """A scan that was accepted."""

    id = fields.String(required=True)
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)
    url = address(metadata={"description": "Poll this URL for the result."})


class SubmissionSchema(JobSchema):
    """The scans of an upload; the first three fields repeat those of the first scan."""

    scans = fields.List(fields.Nested(JobSchema), required=True)


class ReportSchema(Schema):
    """A report that is being made."""

    kind = fields.Enum(ReportKind, by_value=fields.String, required=True)
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)
    url = address(metadata={"description": "GET this URL for the file."})


class ModelVersionSchema(Schema):
    """The model version that produced the result."""

    id = fields.String(required=True)
    architecture = fields.String(required=True)


class SliceSchema(Schema):
    """The result for one slice; slices are numbered from 0 in anatomical order."""

    index = fields.Integer(required=True, validate=COUNT)
    probability = fields.Float(required=True, validate=SHARE)
    types = fields.Dict(
        keys=fields.String(),
        values=fields.Float(validate=SHARE),
        required=True,
        metadata={
            "description": (
                "The probability of each type of hemorrhage in this slice; empty if the model does"
                " not report types."
            )
        },
    )
    area_mm2 = fields.Float(
        required=True,
        allow_none=True,
        validate=COUNT,
        metadata={
            "description": (
                "The outlined area; null if nothing was outlined in the scan or the size of a pixel"
                " is unknown."
            )
        },
    )
    outline_url = address(
        allow_none=True,
        metadata={
            "description": (
                "A PNG with the contour of the hemorrhage, an overlay for the slice; null if"
                " nothing is outlined in it."
            )
        },
    )


class ResultSchema(Schema):
    """The result for a scan. Research use only, never a diagnosis."""

    verdict = fields.String(required=True)
    positive = fields.Boolean(required=True)
    uncertain = fields.Boolean(
        required=True, metadata={"description": "The probability is close to the threshold."}
    )
    state = fields.String(
        required=True,
        validate=validate.OneOf(STATES),
        metadata={
            "description": (
                "suspected, not found, or inconclusive: the probability lies in the band around the"
                " threshold within which neither answer is reliable."
            )
        },
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
                "The probability of each type of hemorrhage; empty if the model does not report"
                " types. Less certain than the overall result; none exceeds `probability`."
            )
        },
    )
    slices = fields.List(fields.Nested(SliceSchema), required=True)
    first_slices = fields.List(
        fields.Integer(validate=COUNT),
        required=True,
        metadata={
            "description": "The slices of a series to look at first; empty for a single slice."
        },
    )
    heatmap_slices = fields.List(
        fields.Integer(validate=COUNT),
        required=True,
        metadata={"description": "The slices of a series that have a heat map so far."},
    )
    heatmap_url = address(
        allow_none=True,
        metadata={
            "description": (
                "A PNG overlay for the image; null if it could not be generated, or was not"
                " because the model outlines the hemorrhage instead."
            )
        },
    )
    volume_ml = fields.Float(
        required=True,
        allow_none=True,
        validate=COUNT,
        metadata={"description": "The volume of what is outlined, in mL; null if it is not known."},
    )
    no_volume_because = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": (
                "Why `volume_ml` is null, a sentence; null with a volume, and in results from"
                " before there were outlines."
            )
        },
    )
    outline_url = address(
        allow_none=True,
        metadata={
            "description": (
                "What is outlined in all slices, as NIfTI in the frame of the volume; null if"
                " nothing is."
            )
        },
    )


class AttemptSchema(Schema):
    """How an earlier attempt at a scan ended."""

    started_at = fields.AwareDateTime(required=True, allow_none=True)
    ended_at = fields.AwareDateTime(required=True)
    outcome = fields.String(required=True)


class EarlierAnswerSchema(Schema):
    """What an earlier model version, or the same one, answered before the scan was scored again."""

    answered_at = fields.AwareDateTime(required=True)
    verdict = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(STATES))
    probability = fields.Float(required=True, validate=SHARE)
    threshold = fields.Float(required=True, validate=SHARE)
    model_version = fields.Nested(ModelVersionSchema, required=True)


class ScanSchema(Schema):
    """A scan: `result` is null until `status` is done; `error` says why a scan failed."""

    id = fields.String(required=True)
    study_id = fields.String(
        required=True, metadata={"description": "Shared by the series of one examination."}
    )
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)
    progress = fields.Float(required=True, validate=SHARE)
    error = fields.String(required=True, allow_none=True)
    title = fields.String(required=True)
    submitter = fields.String(required=True, metadata={"description": "A username."})
    kind = fields.String(required=True, validate=validate.OneOf(("png", "jpeg", "dicom", "nifti")))
    slice_count = fields.Integer(
        required=True,
        validate=validate.Range(1),
        metadata={"description": "The number of slices that were submitted."},
    )
    stat = fields.Boolean(required=True)
    notes = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "Remarks about the upload, such as files that were skipped."},
    )
    created_at = fields.AwareDateTime(required=True)
    finished_at = fields.AwareDateTime(required=True, allow_none=True)
    original_removed_at = fields.AwareDateTime(
        required=True,
        allow_none=True,
        metadata={"description": "When the expired file was deleted; null while it is stored."},
    )
    score_anyway_url = address(
        allow_none=True,
        metadata={
            "description": (
                "POST to this URL to analyze the scan although it does not look like a head CT;"
                " null unless it was rejected for that reason."
            )
        },
    )
    earlier_attempts = fields.List(fields.Nested(AttemptSchema), required=True)
    earlier_answers = fields.List(
        fields.Nested(EarlierAnswerSchema),
        required=True,
        metadata={"description": "Results from before the scan was scored again, newest first."},
    )
    result = fields.Nested(ResultSchema, required=True, allow_none=True)


class ScansQuerySchema(Schema):
    """Paging, filter and order of the list of scans."""

    page = fields.Integer(load_default=1, validate=validate.Range(1, 1_000_000))
    per_page = fields.Integer(load_default=20, validate=validate.Range(1, 100))
    status = fields.Enum(JobStatus, by_value=fields.String, load_default=None)
    shared = fields.Boolean(
        load_default=False,
        truthy={"1", "true"},
        falsy={"0", "false"},
        metadata={"description": "true: the scans of others that are shared with you."},
    )
    order = fields.Enum(
        Order,
        by_value=fields.String,
        load_default=Order.NEWEST,
        metadata={
            "description": (
                "risk: highest probability first; uncertainty: closest to the threshold first."
            )
        },
    )

    @pre_load
    def drop_empty_parameters(self, data: Mapping[str, str], **_: object) -> dict[str, str]:
        """`?status=` means any status."""
        return {name: value for name, value in data.items() if value}


class ScansPageSchema(Schema):
    """One page of scans; `total` counts the scans on all pages."""

    items = fields.List(fields.Nested(ScanSchema), required=True)
    page = fields.Integer(required=True, validate=validate.Range(1))
    per_page = fields.Integer(required=True, validate=validate.Range(1))
    total = fields.Integer(required=True, validate=COUNT)


class LiveModelsQuerySchema(Schema):
    """The time that a question about live models is about."""

    at = fields.AwareDateTime(
        load_default=None,
        default_timezone=UTC,
        metadata={
            "description": (
                "A time such as 2026-01-31T12:00:00Z, in UTC unless it says otherwise; now if left"
                " out."
            )
        },
    )


class LiveModelSchema(Schema):
    """A model version and its operating point, as they were live from `since` to `until`."""

    id = fields.String(required=True)
    card_id = fields.String(required=True)
    architecture = fields.String(required=True)
    operating_point = fields.String(required=True)
    slice_threshold = fields.Float(
        required=True,
        allow_none=True,
        validate=SHARE,
        metadata={"description": "For a single slice; null: as trained."},
    )
    scan_threshold = fields.Float(
        required=True,
        allow_none=True,
        validate=SHARE,
        metadata={"description": "For a scan of several slices; null: as trained."},
    )
    since = fields.AwareDateTime(required=True)
    until = fields.AwareDateTime(required=True, allow_none=True)


class LiveModelsSchema(Schema):
    """The versions that were live at a time; null where none of that kind was."""

    at = fields.AwareDateTime(required=True)
    slice = fields.Nested(LiveModelSchema, required=True, allow_none=True)
    series = fields.Nested(LiveModelSchema, required=True, allow_none=True)


class RegionSchema(Schema):
    """An ellipse on a slice: its center and its radii as shares of the picture's width (x, rx) and
    height (y, ry), counted from the top left.
    """

    x = fields.Float(required=True, validate=SHARE)
    y = fields.Float(required=True, validate=SHARE)
    rx = fields.Float(required=True, validate=RADIUS)
    ry = fields.Float(required=True, validate=RADIUS)


class NewOpinionSchema(Schema):
    """An opinion on a scan, or on one of its slices."""

    finding = fields.Enum(Finding, by_value=fields.String, required=True)
    slice = fields.Integer(
        load_default=None,
        allow_none=True,
        strict=True,
        validate=validate.Range(0, 1_000_000),
        metadata={"description": "Counted from 0; null for the whole scan."},
    )
    types = fields.List(
        fields.String(validate=validate.OneOf(BLEEDING_TYPES)),
        load_default=[],
        validate=validate.Length(max=len(BLEEDING_TYPES)),
        metadata={"description": "Only where hemorrhage is present."},
    )
    comment = fields.String(load_default="", validate=validate.Length(max=MAX_COMMENT))
    region = fields.Nested(RegionSchema, load_default=None, allow_none=True)


class OpinionSchema(Schema):
    """Somebody's opinion on a scan, or on one of its slices."""

    id = fields.String(required=True)
    author = fields.String(required=True, metadata={"description": "A username."})
    slice = fields.Integer(
        required=True,
        allow_none=True,
        validate=COUNT,
        metadata={"description": "Counted from 0; null for the whole scan."},
    )
    finding = fields.Enum(Finding, by_value=fields.String, required=True)
    types = fields.List(fields.String(), required=True)
    comment = fields.String(required=True)
    region = fields.Nested(RegionSchema, required=True, allow_none=True)
    agrees = fields.Boolean(
        required=True,
        allow_none=True,
        metadata={
            "description": (
                "Whether it agrees with the model's result for the scan; null for slices and for"
                " who cannot tell."
            )
        },
    )
    model_version_id = fields.String(required=True, allow_none=True)
    model_probability = fields.Float(
        required=True,
        allow_none=True,
        validate=SHARE,
        metadata={"description": "What its author saw of the scan or the slice."},
    )
    created_at = fields.AwareDateTime(required=True)
    updated_at = fields.AwareDateTime(required=True)


class OpinionsSchema(Schema):
    """The opinions on a scan."""

    confirmed = fields.Enum(
        Finding,
        by_value=fields.String,
        required=True,
        allow_none=True,
        metadata={
            "description": (
                "What most people say of the whole scan; null where nobody decided, or as many say"
                " the opposite."
            )
        },
    )
    disputed = fields.Boolean(required=True)
    items = fields.List(fields.Nested(OpinionSchema), required=True)


class NewShareSchema(Schema):
    """With whom a scan is to be shared."""

    username = fields.String(
        required=True,
        allow_none=True,
        validate=validate.Length(max=MAX_USERNAME),
        metadata={"description": "A person; null for all reviewers."},
    )


class ShareSchema(Schema):
    """Who may see a scan besides its owner: a person, or all reviewers."""

    id = fields.String(required=True)
    username = fields.String(required=True, allow_none=True)
    created_at = fields.AwareDateTime(required=True)


class DueSchema(Schema):
    """A scan that a reviewer should read, and why."""

    scan_id = fields.String(required=True)
    url = address()
    reason = fields.String(required=True, validate=validate.OneOf(REASONS))
    submitter = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(STATES))
    probability = fields.Float(required=True, validate=SHARE)


class EstimateSchema(Schema):
    """A figure with its 95 % interval; null where it is undefined, for that reason."""

    value = fields.Float(required=True, allow_none=True)
    low = fields.Float(required=True, allow_none=True)
    high = fields.Float(required=True, allow_none=True)
    n = fields.Integer(required=True, validate=COUNT)
    reason = fields.String(required=True, allow_none=True)


class CalibrationBinSchema(Schema):
    """Scans with similar probabilities, and how many of them have a hemorrhage."""

    low = fields.Float(required=True, validate=SHARE)
    high = fields.Float(required=True, validate=SHARE)
    scans = fields.Integer(required=True, validate=COUNT)
    predicted = fields.Float(required=True, validate=SHARE)
    observed = fields.Nested(EstimateSchema, required=True)


class ConfirmedFiguresSchema(Schema):
    """Figures of confirmed scans, weighted by how likely each was to be reviewed."""

    scans = fields.Integer(required=True, validate=COUNT)
    with_hemorrhage = fields.Integer(required=True, validate=COUNT)
    represented = fields.Float(
        required=True, metadata={"description": "How many scans they stand for."}
    )
    metrics = fields.Dict(keys=fields.String(), values=fields.Nested(EstimateSchema), required=True)
    bins = fields.List(fields.Nested(CalibrationBinSchema), required=True)


class MonthFiguresSchema(ConfirmedFiguresSchema):
    """The same for the scans submitted in one month."""

    month = fields.String(required=True, metadata={"description": "Such as 2026-11."})


class VersionFiguresSchema(Schema):
    """What a live version achieves on confirmed scans that it has not learned from."""

    version_id = fields.String(required=True)
    card_id = fields.String(required=True)
    architecture = fields.String(required=True)
    reads = fields.String(required=True)
    all = fields.Nested(ConfirmedFiguresSchema, required=True)
    months = fields.List(fields.Nested(MonthFiguresSchema), required=True)
    notes = fields.List(fields.String(), required=True)


class SiteFiguresSchema(Schema):
    """What the live versions achieve on this site's confirmed scans."""

    computed_at = fields.AwareDateTime(required=True)
    versions = fields.List(fields.Nested(VersionFiguresSchema), required=True)
