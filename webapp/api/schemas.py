"""The schemas of the JSON API's requests and responses, and so of its OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, ValidationError, fields, pre_load, validate

from ml.catalogue import BLEEDING_TYPES
from ml.verdict import STATES
from webapp.api.lists import PageQuerySchema, PageSchema
from webapp.forms import MAX_COMMENT, MAX_TITLE, MAX_USERNAME
from webapp.models import Finding, JobStatus, Order, ReportKind, Role, Scope
from webapp.review.queue import REASONS
from webapp.scans.changes import CHANGES, MOST_SELECTED
from webapp.scans.worklist_query import COLUMNS

SHARE = validate.Range(0, 1)
COUNT = validate.Range(0)
RADIUS = validate.Range(0, 1, min_inclusive=False)
A_ID = validate.Regexp(r"^[0-9a-f]{32}$")
PRINTABLE = validate.Regexp(
    r"^[^\x00-\x1f\x7f-\x9f]*$", error="Please use printable characters only."
)
ORDERS = (
    *(order.value for order in Order),
    *(f"{sign}{name}" for name in COLUMNS for sign in ("", "-")),
)


def address(**arguments: Any) -> fields.Url:
    """Return a field for an address, under the name that JSON Schema has for its format."""
    metadata = {**arguments.pop("metadata", {}), "format": "uri"}
    return fields.Url(required=True, metadata=metadata, **arguments)


class Moment(fields.AwareDateTime):
    """A time in a URL, where + means a space unless it is encoded as %2B: a time copied from a
    response is accepted anyway.
    """

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = re.sub(r" ([0-9]{2}:[0-9]{2})$", r"+\1", value) if isinstance(value, str) else value
        return super()._deserialize(text, *args, **kwargs)


def moment(description: str) -> fields.AwareDateTime:
    """Return a field for a time in a query, in UTC if it has no time zone."""
    return Moment(
        load_default=None,
        default_timezone=UTC,
        validate=_require_utc,
        metadata={"description": description},
    )


def _require_utc(moment: datetime) -> None:
    """Refuse a time whose year in UTC is not 1 to 9999."""
    try:
        moment.astimezone(UTC)
    except OverflowError as err:
        raise ValidationError("Not a valid datetime.") from err


class ProblemSchema(Schema):
    """An error (RFC 9457); `detail` is a sentence for users."""

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


class TokenSchema(Schema):
    """The token of a request: its scopes and its expiry."""

    name = fields.String(required=True)
    username = fields.String(required=True, metadata={"description": "The user it belongs to."})
    role = fields.String(required=True, validate=validate.OneOf([role.value for role in Role]))
    scopes = fields.List(fields.Enum(Scope, by_value=fields.String), required=True)
    created_at = fields.AwareDateTime(required=True)
    expires_at = fields.AwareDateTime(
        required=True, allow_none=True, metadata={"description": "null: never."}
    )


class ChangeSchema(Schema):
    """An action, and which of your scans it applies to."""

    action = fields.String(required=True, validate=validate.OneOf((*CHANGES, "delete")))
    ids = fields.List(
        fields.String(validate=A_ID),
        required=True,
        validate=validate.Length(1, MOST_SELECTED),
    )


class ChangedSchema(Schema):
    """The outcome for each scan."""

    action = fields.String(required=True)
    changed = fields.List(fields.String(), required=True)
    unchanged = fields.List(fields.String(), required=True)
    unchanged_because = fields.String(
        required=True, allow_none=True, metadata={"description": "null if all were changed."}
    )
    not_found = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "Ids that do not belong to your scans."},
    )


class JoinSchema(Schema):
    """Single images that become a series, in this order."""

    ids = fields.List(
        fields.String(validate=A_ID),
        required=True,
        validate=validate.Length(2, MOST_SELECTED),
    )
    title = fields.String(load_default="", validate=[PRINTABLE, validate.Length(max=MAX_TITLE)])


class ReportSchema(Schema):
    """A report that is being generated, or is ready."""

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
                " threshold within which neither result is reliable."
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
        metadata={"description": "The outlined volume in mL; null if unknown."},
    )
    no_volume_because = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": (
                "Why `volume_ml` is null, a sentence; null with a volume, and in results that"
                " predate outlines."
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
    """The result of an earlier analysis, by the same model version or another one."""

    id = fields.Integer(
        required=True, metadata={"description": "The id to pass to `reproduce_scan`."}
    )
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
        metadata={"description": "Notes about the upload, such as skipped files."},
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
        metadata={
            "description": "Earlier results, from before the scan was reanalyzed; newest first."
        },
    )
    result = fields.Nested(ResultSchema, required=True, allow_none=True)


class ScansQuerySchema(PageQuerySchema):
    """The worklist's filters and sort orders, for lists of scans."""

    shared = fields.Boolean(
        load_default=False,
        truthy={"1", "true"},
        falsy={"0", "false"},
        metadata={"description": "true: other users' scans that are shared with you."},
    )
    submitter = fields.String(
        load_default=None,
        validate=[PRINTABLE, validate.Length(max=MAX_USERNAME)],
        metadata={"description": "Part of a username; only of scans that are shared with you."},
    )
    title = fields.String(
        load_default=None,
        validate=[PRINTABLE, validate.Length(max=MAX_TITLE)],
        metadata={"description": "Part of the title."},
    )
    status = fields.Enum(JobStatus, by_value=fields.String, load_default=None)
    verdict = fields.String(load_default=None, validate=validate.OneOf(STATES))
    priority = fields.String(load_default=None, validate=validate.OneOf(("stat", "routine")))
    since = fields.Date(
        load_default=None, metadata={"description": "The first day of submission, in UTC."}
    )
    until = fields.Date(
        load_default=None, metadata={"description": "The last day of submission, in UTC."}
    )
    finished_since = moment("Only scans whose analysis ended then or later.")
    study = fields.String(
        load_default=None,
        validate=A_ID,
        metadata={"description": "The `study_id` of an examination: its series only."},
    )
    order = fields.String(
        load_default=Order.NEWEST.value,
        validate=validate.OneOf(ORDERS),
        metadata={
            "description": (
                "risk: highest probability first; uncertainty: closest to the threshold first;"
                " otherwise a column, with a minus in descending order. By risk and uncertainty,"
                " STAT scans come first and scans without a result last."
            )
        },
    )

    @pre_load
    def drop_empty_parameters(self, data: Mapping[str, str], **_: object) -> dict[str, str]:
        """`?status=` means any status."""
        return {name: value for name, value in data.items() if value}


class ScansPageSchema(PageSchema):
    """One page of scans; `total` counts the scans on all pages."""

    items = fields.List(fields.Nested(ScanSchema), required=True)
    total = fields.Integer(required=True, validate=COUNT)


class LiveModelsQuerySchema(Schema):
    """The time for which live models are requested."""

    at = moment(
        "A time such as 2026-01-31T12:00:00Z, in UTC unless it says otherwise; defaults to now."
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
    """The versions that were live at a time; null if there was none of that kind."""

    at = fields.AwareDateTime(required=True)
    slice = fields.Nested(LiveModelSchema, required=True, allow_none=True)
    series = fields.Nested(LiveModelSchema, required=True, allow_none=True)


class RegionSchema(Schema):
    """An ellipse on a slice: its center and its radii as fractions of the image's width (x, rx) and
    height (y, ry), measured from the top left.
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
    from_queue = fields.Boolean(
        load_default=False,
        truthy={True},
        falsy={False},
        metadata={
            "description": (
                "The review queue led you to this scan. It is noted in a first opinion on the whole"
                " scan where the queue offers it to you, and ignored otherwise."
            )
        },
    )


class OpinionSchema(Schema):
    """A user's opinion on a scan, or on one of its slices."""

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
                "Whether it agrees with the result that the scan has now; null without a result,"
                " for slices, where its author cannot tell, and where the result is inconclusive."
            )
        },
    )
    model_version_id = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": (
                "The version whose result its author saw. It may be an earlier one than that of the"
                " scan's result, if the scan was reanalyzed."
            )
        },
    )
    model_positive = fields.Boolean(
        required=True,
        allow_none=True,
        metadata={
            "description": (
                "Whether the result that its author saw was positive; null for slices, and where"
                " it was inconclusive."
            )
        },
    )
    model_probability = fields.Float(
        required=True,
        allow_none=True,
        validate=SHARE,
        metadata={"description": "The model's probability that its author saw."},
    )
    sampling = fields.Float(
        required=True,
        allow_none=True,
        validate=SHARE,
        metadata={
            "description": (
                "The probability with which the review queue chose the scan for its author; site"
                " figures weigh by it. Null where its author chose the scan."
            )
        },
    )
    created_at = fields.AwareDateTime(required=True)
    updated_at = fields.AwareDateTime(required=True)


class OpinionsSchema(PageSchema):
    """A page of the opinions on a scan, and the consensus of all opinions."""

    confirmed = fields.Enum(
        Finding,
        by_value=fields.String,
        required=True,
        allow_none=True,
        metadata={
            "description": (
                "The majority opinion on the whole scan; null without opinions, and for a tie."
            )
        },
    )
    disputed = fields.Boolean(required=True)
    items = fields.List(fields.Nested(OpinionSchema), required=True)


class NewShareSchema(Schema):
    """Whom to share a scan with."""

    username = fields.String(
        required=True,
        allow_none=True,
        validate=validate.Length(max=MAX_USERNAME),
        metadata={"description": "A user; null for all reviewers."},
    )


class ShareSchema(Schema):
    """Who may see a scan besides its owner: a user, or all reviewers."""

    id = fields.String(required=True)
    username = fields.String(required=True, allow_none=True)
    created_at = fields.AwareDateTime(required=True)


class SharesSchema(PageSchema):
    """A page of the users that a scan is shared with."""

    items = fields.List(fields.Nested(ShareSchema), required=True)


class DueSchema(Schema):
    """A scan that a reviewer should read, and why."""

    scan_id = fields.String(required=True)
    url = address()
    reason = fields.String(required=True, validate=validate.OneOf(REASONS))
    submitter = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(STATES))
    probability = fields.Float(required=True, validate=SHARE)


class ReviewQueueSchema(PageSchema):
    """A page of the review queue, and how many scans are in it for each reason."""

    items = fields.List(fields.Nested(DueSchema), required=True)
    counts = fields.Dict(
        keys=fields.String(validate=validate.OneOf(REASONS)),
        values=fields.Integer(validate=COUNT),
        required=True,
    )
    random_share = fields.Float(required=True, validate=SHARE)


class EstimateSchema(Schema):
    """A figure with its 95% interval; null if it is undefined, with the reason."""

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
        required=True, metadata={"description": "The number of scans they represent."}
    )
    metrics = fields.Dict(keys=fields.String(), values=fields.Nested(EstimateSchema), required=True)
    bins = fields.List(fields.Nested(CalibrationBinSchema), required=True)


class MonthFiguresSchema(ConfirmedFiguresSchema):
    """The same for the scans submitted in one month."""

    month = fields.String(required=True, metadata={"description": "Such as 2026-11."})


class VersionFiguresSchema(Schema):
    """The performance of a live version on confirmed scans that it was not trained on."""

    version_id = fields.String(required=True)
    card_id = fields.String(required=True)
    architecture = fields.String(required=True)
    reads = fields.String(required=True)
    all = fields.Nested(ConfirmedFiguresSchema, required=True)
    months = fields.List(fields.Nested(MonthFiguresSchema), required=True)
    notes = fields.List(fields.String(), required=True)


class SiteFiguresSchema(Schema):
    """The performance of the live versions on this site's confirmed scans."""

    computed_at = fields.AwareDateTime(required=True)
    versions = fields.List(fields.Nested(VersionFiguresSchema), required=True)
