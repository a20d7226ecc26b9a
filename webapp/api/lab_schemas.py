"""Schemas for administrators: model versions, evaluations, training runs, data sets, this site,
users and the audit log.
"""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields, validate

from ml.catalogue import ARCHITECTURES
from ml.named_points import POINTS
from ml.verdict import STATES
from webapp.admin.operating_points import AS_TRAINED
from webapp.admin.promotion_checks import SUMMARIES
from webapp.admin.run_form import LONGEST_NAME, LONGEST_NOTES, LONGEST_TAG, MOST_TAGS
from webapp.admin.run_query import LONGEST_TEXT, SORTS
from webapp.admin.version_figures import LEVELS, PREVALENCES, USUAL_PREVALENCE
from webapp.api.lists import PageQuerySchema, PageSchema
from webapp.api.schemas import A_ID, COUNT, PRINTABLE, SHARE, SiteFiguresSchema, moment
from webapp.extensions import LARGEST_INTEGER
from webapp.learning.confirmed import MAX_DATASET_NAME
from webapp.models import OWN_THRESHOLDS, Act, JobStatus, Role

KINDS = ("slice", "series")
MOST_DATASETS = 50
MOST_OPINIONS = 10


def an_id(**arguments: Any) -> fields.String:
    """Return a field for the id of a row that must exist."""
    return fields.String(required=True, validate=A_ID, **arguments)


def a_count(description: str) -> fields.Integer:
    """Return a field for a count."""
    return fields.Integer(required=True, validate=COUNT, metadata={"description": description})


class WorkSchema(Schema):
    """The progress of a worker's job."""

    id = fields.String(required=True)
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)
    progress = fields.Float(required=True, validate=SHARE)
    stage = fields.String(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    created_at = fields.AwareDateTime(required=True)
    started_at = fields.AwareDateTime(required=True, allow_none=True)
    finished_at = fields.AwareDateTime(required=True, allow_none=True)


class OperatingPointSchema(Schema):
    """An operating point of a version: its thresholds, and what they mean per 100 scans."""

    name = fields.String(required=True)
    scan_threshold = fields.Float(required=True, validate=SHARE)
    slice_threshold = fields.Float(required=True, validate=SHARE)
    by_scan = fields.String(required=True, metadata={"description": "Empty if it is not known."})
    by_slice = fields.String(required=True, metadata={"description": "Empty if it is not known."})


class RegisteredSchema(Schema):
    """A model version in the registry."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    card_id = fields.String(required=True)
    architecture = fields.String(required=True)
    number = fields.Integer(required=True, validate=COUNT)
    reads = fields.String(required=True, validate=validate.OneOf(KINDS))
    run_id = fields.String(required=True, allow_none=True)
    created_at = fields.AwareDateTime(required=True)
    is_live = fields.Boolean(required=True)
    blocked_because = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "A sentence that says why it cannot be promoted; null if it can."},
    )
    metrics = fields.Dict(
        required=True, metadata={"description": "Figures by slice, with intervals, by name."}
    )


class RegistryPageSchema(PageSchema):
    """One page of the registry, newest version first."""

    items = fields.List(fields.Nested(RegisteredSchema), required=True)


class VersionSchema(RegisteredSchema):
    """A model version with its card, its operating point, and its worst out-of-fold mistakes, each
    of which has an image.
    """

    operating_point = fields.Nested(OperatingPointSchema, required=True)
    card = fields.Dict(required=True)
    mistakes = fields.List(
        fields.Dict(),
        required=True,
        allow_none=True,
        metadata={"description": "null: none were kept in training."},
    )


class CheckSchema(Schema):
    """A line of the checklist."""

    name = fields.String(required=True)
    passed = fields.Boolean(
        required=True, allow_none=True, metadata={"description": "null: not known."}
    )
    sentence = fields.String(required=True)


class ComparedSchema(Schema):
    """The result of the comparison with the live version, on the images of one source."""

    source = fields.String(required=True)
    verdict = fields.String(required=True, validate=validate.OneOf(list(SUMMARIES)))
    sentence = fields.String(required=True)


class ChecklistSchema(Schema):
    """What is needed to promote a version."""

    is_live = fields.Boolean(required=True)
    live_id = fields.String(required=True, allow_none=True)
    seen = fields.String(
        required=True,
        metadata={
            "description": "What is live now. Send it with the promotion, which is refused if"
            " another version went live meanwhile."
        },
    )
    verdict = fields.String(
        required=True, allow_none=True, validate=validate.OneOf(list(SUMMARIES))
    )
    summary = fields.String(required=True, allow_none=True)
    confirmation = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The phrase to send as `confirmation`; null if none is needed."},
    )
    checks = fields.List(fields.Nested(CheckSchema), required=True)
    compared = fields.List(fields.Nested(ComparedSchema), required=True)
    operating_points = fields.List(fields.Nested(OperatingPointSchema), required=True)


class PromoteSchema(Schema):
    """The decision to make a version live."""

    reason = fields.String(
        required=True,
        validate=[PRINTABLE, validate.Length(1, 500)],
        metadata={"description": "Recorded in the history."},
    )
    seen = fields.String(
        required=True,
        validate=validate.Regexp(r"^[0-9a-z]{1,20}$"),
        metadata={"description": "From the checklist."},
    )
    confirmation = fields.String(
        load_default="",
        validate=[PRINTABLE, validate.Length(max=100)],
        metadata={"description": "The phrase that the checklist asks for, if any."},
    )
    operating_point = fields.String(
        load_default=None,
        allow_none=True,
        validate=validate.OneOf((AS_TRAINED, *POINTS, OWN_THRESHOLDS)),
        metadata={"description": "null: the version's current one."},
    )
    scan_threshold = fields.Float(load_default=None, allow_none=True, validate=SHARE)
    slice_threshold = fields.Float(load_default=None, allow_none=True, validate=SHARE)


class PromotionSchema(Schema):
    """A promotion: a version and its operating point, live from `at` to `until`."""

    id = fields.Integer(required=True)
    version_id = fields.String(required=True)
    name = fields.String(required=True)
    reads = fields.String(required=True, validate=validate.OneOf(KINDS))
    at = fields.AwareDateTime(required=True)
    until = fields.AwareDateTime(required=True, allow_none=True)
    by = fields.String(
        required=True, allow_none=True, metadata={"description": "A username; null: setup."}
    )
    reason = fields.String(required=True)
    operating_point = fields.String(required=True)
    evidence = fields.Dict(required=True, allow_none=True)


class PromotionsPageSchema(PageSchema):
    """One page of the timeline, newest promotion first."""

    items = fields.List(fields.Nested(PromotionSchema), required=True)


class EffectSchema(PromotionSchema):
    """A promotion with its effect: the results of the scans analyzed while it was in force,
    compared with those that the previous version (`before`) would have given.
    """

    before = fields.Nested(
        PromotionSchema,
        required=True,
        allow_none=True,
        metadata={"description": "What was live before; null: nothing."},
    )
    is_point_only = fields.Boolean(
        required=True,
        metadata={
            "description": "It changed only the operating point, so its whole effect is known."
        },
    )
    scans = a_count("Scans from that period; only the newest if there are many.")
    is_cut = fields.Boolean(required=True, metadata={"description": "Whether there are more."})
    known = a_count("Scans for which the previous version's result is known.")
    missing = a_count("Scans it has not analyzed; call find_out_promotion to have it analyze them.")
    changed = a_count("Scans that would have a different result; list_changed_results lists them.")
    suspected_with_only = a_count("Scans suspected only with the promotion.")
    suspected_without_only = a_count("Scans suspected only without the promotion.")
    shadow_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The shadow run in which the previous version is analyzing them."},
    )
    compared = fields.List(
        fields.Nested(ComparedSchema),
        required=True,
        metadata={"description": "Compared with the previous version on labeled images."},
    )


class ChangedResultSchema(Schema):
    """A scan whose result would have been different without a promotion (`without`)."""

    scan_id = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "null: neither yours nor shared with you."},
    )
    state = fields.String(required=True, validate=validate.OneOf(STATES))
    probability = fields.Float(required=True, validate=SHARE)
    without_state = fields.String(required=True, validate=validate.OneOf(STATES))
    without_probability = fields.Float(required=True, validate=SHARE)
    answered_at = fields.AwareDateTime(required=True)


class ChangedResultsPageSchema(PageSchema):
    """One page of the results that would have been different, newest first."""

    items = fields.List(fields.Nested(ChangedResultSchema), required=True)


class TimelineQuerySchema(PageQuerySchema):
    """Filters for promotions."""

    reads = fields.String(load_default=None, validate=validate.OneOf(KINDS))
    at = moment("Only what was live at that time.")


class EarlierQuerySchema(PageQuerySchema):
    """The kind of input whose earlier versions are listed."""

    reads = fields.String(required=True, validate=validate.OneOf(KINDS))


class ThresholdQuerySchema(Schema):
    """A threshold, for series or for single slices."""

    at = fields.Float(required=True, validate=SHARE)
    level = fields.String(
        load_default="patient",
        validate=validate.OneOf(LEVELS),
        metadata={"description": "patient: of series; slice: of single slices."},
    )
    prevalence = fields.Float(
        load_default=USUAL_PREVALENCE,
        validate=validate.Range(*PREVALENCES),
        metadata={"description": "The prevalence of hemorrhage in percent."},
    )


class AtThresholdSchema(Schema):
    """The performance of one of two versions at the threshold, on the same patients."""

    source = fields.String(required=True)
    whose = fields.String(required=True, validate=validate.OneOf(("own", "other")))
    sensitivity = fields.Float(required=True, validate=SHARE)
    specificity = fields.Float(required=True, validate=SHARE)
    meaning = fields.String(required=True)


class ThresholdFiguresSchema(Schema):
    """The performance at a threshold, and the alarms per 100 at a prevalence."""

    sensitivity = fields.Float(required=True, validate=SHARE)
    specificity = fields.Float(required=True, validate=SHARE)
    positive = fields.Integer(
        required=True,
        allow_none=True,
        validate=COUNT,
        metadata={"description": "The number of positives it was measured on; null: unknown."},
    )
    negative = fields.Integer(
        required=True,
        allow_none=True,
        validate=COUNT,
        metadata={"description": "The number of negatives; null: unknown."},
    )
    ppv = fields.Float(
        required=True,
        allow_none=True,
        validate=SHARE,
        metadata={"description": "null: nothing is flagged."},
    )
    npv = fields.Float(
        required=True,
        allow_none=True,
        validate=SHARE,
        metadata={"description": "null: everything is flagged."},
    )
    alarms = fields.Float(required=True, validate=COUNT)
    true_alarms = fields.Float(required=True, validate=COUNT)
    false_alarms = fields.Float(required=True, validate=COUNT)
    missed = fields.Float(required=True, validate=COUNT)


class ThresholdSchema(Schema):
    """What a threshold means, and its performance next to the live version's (`other`)."""

    threshold = fields.Float(required=True, validate=SHARE)
    level = fields.String(required=True, validate=validate.OneOf(LEVELS))
    prevalence = fields.Float(required=True, validate=validate.Range(*PREVALENCES))
    meaning = fields.String(required=True, metadata={"description": "Empty if not known."})
    figures = fields.Nested(
        ThresholdFiguresSchema,
        required=True,
        allow_none=True,
        metadata={"description": "null: the version has no curve at this level."},
    )
    both = fields.List(
        fields.Nested(AtThresholdSchema),
        required=True,
        metadata={"description": "By patient only: on the patients that both analyzed."},
    )


class EvaluateSchema(Schema):
    """A version, and the data set to score it on."""

    version_id = an_id()
    dataset_id = an_id()


class EvaluationSummarySchema(WorkSchema):
    """An evaluation: a version scored once on a data set."""

    version_id = fields.String(required=True)
    dataset_id = fields.String(required=True)
    dataset = fields.String(required=True, metadata={"description": "Its name."})
    result = fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "The figures, once it has finished."},
    )


class EvaluationSchema(EvaluationSummarySchema):
    """An evaluation with its curves and the worst mistakes, each of which has an image."""

    curves = fields.Dict(required=True, allow_none=True)
    mistakes = fields.List(fields.Dict(), required=True)


class EvaluationsPageSchema(PageSchema):
    """One page of evaluations, newest first."""

    items = fields.List(fields.Nested(EvaluationSummarySchema), required=True)


class EvaluationsQuerySchema(PageQuerySchema):
    """Filters for evaluations."""

    version = fields.String(load_default=None, validate=A_ID)
    dataset = fields.String(load_default=None, validate=A_ID)


class CompareSchema(Schema):
    """The version to compare with the live one."""

    version_id = an_id()


class ComparisonSchema(WorkSchema):
    """How a version differs from another one on the images that both have predictions for; figures
    are the first version's minus the other's.
    """

    version_id = fields.String(required=True)
    other_id = fields.String(required=True)
    results = fields.List(
        fields.Dict(),
        required=True,
        allow_none=True,
        metadata={"description": "For each source of predictions, once it has been computed."},
    )


class ComparisonsPageSchema(PageSchema):
    """One page of comparisons, newest first."""

    items = fields.List(fields.Nested(ComparisonSchema), required=True)


class ComparisonsQuerySchema(PageQuerySchema):
    """Filters for comparisons."""

    version = fields.String(
        load_default=None, validate=A_ID, metadata={"description": "Either of the two."}
    )


class SettingSchema(Schema):
    """A setting of an architecture."""

    name = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(("int", "float", "choice")))
    default = fields.Raw(required=True)
    help = fields.String(required=True)
    low = fields.Float(required=True, allow_none=True)
    high = fields.Float(required=True, allow_none=True)
    choices = fields.List(fields.String(), required=True)


class ArchitectureSchema(Schema):
    """An architecture that can be trained, with its settings and the weights that it can start
    from.
    """

    name = fields.String(required=True)
    title = fields.String(required=True)
    summary = fields.String(required=True)
    reads = fields.String(required=True, validate=validate.OneOf(KINDS))
    settings = fields.List(fields.Nested(SettingSchema), required=True)
    initial_weights = fields.List(
        fields.String(), required=True, metadata={"description": "The default first."}
    )


class ArchitecturesPageSchema(PageSchema):
    """One page of the catalogue."""

    items = fields.List(fields.Nested(ArchitectureSchema), required=True)


class RunsQuerySchema(PageQuerySchema):
    """Filters and order for training runs."""

    status = fields.Enum(JobStatus, by_value=fields.String, load_default=None)
    architecture = fields.String(load_default=None, validate=validate.OneOf(list(ARCHITECTURES)))
    dataset = fields.String(
        load_default=None, validate=A_ID, metadata={"description": "One that it was trained on."}
    )
    tag = fields.String(load_default=None, validate=[PRINTABLE, validate.Length(1, LONGEST_TAG)])
    text = fields.String(
        load_default=None,
        validate=[PRINTABLE, validate.Length(1, LONGEST_TEXT)],
        metadata={"description": "Part of the name or of the notes."},
    )
    sort = fields.String(
        load_default="newest",
        validate=validate.OneOf(list(SORTS)),
        metadata={"description": "auroc: the best first; otherwise in alphabetical order."},
    )


def run_name(**arguments: Any) -> fields.String:
    """Return a field for the name of a run."""
    limits = [PRINTABLE, validate.Length(max=LONGEST_NAME)]
    return fields.String(allow_none=True, validate=limits, **arguments)


def run_tags(**arguments: Any) -> fields.List[str]:
    """Return a field for the tags of a run."""
    description = "Words of letters, digits, points, hyphens, plus signs and underscores."
    return fields.List(
        fields.String(validate=validate.Length(1, LONGEST_TAG)),
        validate=validate.Length(max=MOST_TAGS),
        metadata={"description": description},
        **arguments,
    )


def run_notes(**arguments: Any) -> fields.String:
    """Return a field for the notes on a run."""
    return fields.String(
        allow_none=True,
        validate=validate.Length(max=LONGEST_NOTES),
        metadata={"description": "Lines of text."},
        **arguments,
    )


class DescribeSchema(Schema):
    """The new name, tags and notes of a run."""

    name = run_name(required=True)
    tags = run_tags(required=True)
    notes = run_notes(required=True)


class LaunchSchema(Schema):
    """A training run to launch; anything left out gets the architecture's default."""

    name = run_name(load_default=None)
    tags = run_tags(load_default=[])
    notes = run_notes(load_default=None)
    architecture = fields.String(required=True, validate=validate.OneOf(list(ARCHITECTURES)))
    dataset_ids = fields.List(
        fields.String(validate=A_ID),
        required=True,
        validate=validate.Length(1, MOST_DATASETS),
    )
    settings = fields.Dict(keys=fields.String(), load_default={})
    initial_weights = fields.String(
        load_default=None, allow_none=True, metadata={"description": "null: the default."}
    )
    seed = fields.Integer(load_default=0, strict=True, validate=validate.Range(0, LARGEST_INTEGER))
    accept_overruled = fields.Boolean(
        load_default=False,
        truthy={True},
        falsy={False},
        metadata={
            "description": "Whether to launch even if initial weights would be overruled; a"
            " refusal says which ones, and why."
        },
    )


class NamedDatasetSchema(Schema):
    """A data set by id and name."""

    id = fields.String(required=True)
    name = fields.String(required=True)


class RunSummarySchema(WorkSchema):
    """A training run, or a calibration of a version on a data set of this site."""

    name = fields.String(required=True, allow_none=True)
    tags = fields.List(fields.String(), required=True)
    notes = fields.String(required=True, allow_none=True)
    architecture = fields.String(required=True)
    is_calibration = fields.Boolean(required=True)
    seed = fields.Integer(required=True)
    initial_weights = fields.String(required=True)
    launched_by = fields.String(
        required=True, allow_none=True, metadata={"description": "A username."}
    )
    datasets = fields.List(fields.Nested(NamedDatasetSchema), required=True)
    eta_s = fields.Float(required=True, allow_none=True, metadata={"description": "Seconds left."})
    current_metrics = fields.Dict(required=True)
    version_id = fields.String(
        required=True, allow_none=True, metadata={"description": "What it produced."}
    )


class PointSchema(Schema):
    """A metric in one of ten thousand equal parts of a run, with its fold and epoch. The loss is
    the mean over ten of them; `validation_loss` and `validation_auroc` are on images held out from
    training, after each epoch.
    """

    metric = fields.String(required=True)
    step = fields.Integer(required=True, validate=COUNT)
    value = fields.Float(required=True)
    stage = fields.String(required=True)
    epoch = fields.Integer(required=True, allow_none=True, validate=COUNT)


class PastAttemptSchema(Schema):
    """How an earlier attempt ended."""

    started_at = fields.AwareDateTime(required=True, allow_none=True)
    ended_at = fields.AwareDateTime(required=True)
    outcome = fields.String(required=True)


class RunSchema(RunSummarySchema):
    """A training run with its settings, curves and earlier attempts."""

    settings = fields.Dict(required=True)
    curves = fields.List(fields.Nested(PointSchema), required=True)
    earlier_attempts = fields.List(fields.Nested(PastAttemptSchema), required=True)


class RunsPageSchema(PageSchema):
    """One page of training runs."""

    items = fields.List(fields.Nested(RunSummarySchema), required=True)


class DatasetSummarySchema(WorkSchema):
    """A data set: labeled images, imported or made from confirmed scans."""

    name = fields.String(required=True)
    fingerprint = fields.String(required=True, allow_none=True)
    made_from = fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "The filters of the confirmed scans; null if imported."},
    )


class DatasetSchema(DatasetSummarySchema):
    """A data set with what was found in it."""

    exploration = fields.Dict(required=True, allow_none=True)


class DatasetsPageSchema(PageSchema):
    """One page of data sets, newest first."""

    items = fields.List(fields.Nested(DatasetSummarySchema), required=True)


class ConfirmedDatasetSchema(Schema):
    """A data set to be made from this site's confirmed scans."""

    name = fields.String(required=True, validate=[PRINTABLE, validate.Length(1, MAX_DATASET_NAME)])
    since = fields.Date(load_default=None, allow_none=True)
    until = fields.Date(load_default=None, allow_none=True)
    kind = fields.String(
        load_default="",
        validate=validate.OneOf(("", *KINDS)),
        metadata={"description": "Empty: series and single slices."},
    )
    opinions = fields.Integer(
        load_default=1,
        strict=True,
        validate=validate.Range(1, MOST_OPINIONS),
        metadata={"description": "The minimum number of readers who must agree."},
    )


class CalibrateSchema(Schema):
    """A version, and the data set of this site to calibrate it on."""

    version_id = an_id()
    dataset_id = an_id()


class SiteFiguresRequestSchema(WorkSchema):
    """A computation of the site figures."""


class DisputedSchema(Schema):
    """A scan on which the reviewers disagree."""

    scan_id = fields.String(required=True)
    submitter = fields.String(required=True)
    present = fields.Integer(required=True, validate=COUNT)
    absent = fields.Integer(required=True, validate=COUNT)


class SiteSchema(Schema):
    """The confirmed scans of this site, and the age of its figures."""

    confirmed_present = fields.Integer(required=True, validate=COUNT)
    confirmed_absent = fields.Integer(required=True, validate=COUNT)
    disputed = fields.Integer(required=True, validate=COUNT)
    disputed_scans = fields.List(
        fields.Nested(DisputedSchema),
        required=True,
        metadata={"description": "The newest of them, at most 20."},
    )
    newest_request = fields.Nested(SiteFiguresRequestSchema, required=True, allow_none=True)
    figures = fields.Nested(SiteFiguresSchema, required=True, allow_none=True)
    opinions_since = fields.Integer(
        required=True,
        validate=COUNT,
        metadata={"description": "Opinions given or changed since the figures were requested."},
    )


class QueueSchema(Schema):
    """The number of jobs of a kind."""

    what = fields.String(required=True)
    queue = fields.String(required=True)
    queued = fields.Integer(required=True, validate=COUNT)
    running = fields.Integer(required=True, validate=COUNT)
    failed = fields.Integer(required=True, validate=COUNT)
    oldest_s = fields.Float(
        required=True,
        allow_none=True,
        metadata={"description": "The age of the oldest queued job, in seconds."},
    )


class WorkerSchema(Schema):
    """A worker process."""

    id = fields.String(required=True)
    queue = fields.String(required=True)
    host = fields.String(required=True)
    started_at = fields.AwareDateTime(required=True)
    seen_at = fields.AwareDateTime(required=True)
    silent_s = fields.Float(required=True, validate=COUNT)
    alarm = fields.String(required=True, allow_none=True)


class StuckSchema(WorkSchema):
    """A job that has waited too long, or whose worker has died."""

    what = fields.String(required=True)


class OperationsSchema(Schema):
    """Queues, workers and stuck jobs."""

    queues = fields.List(fields.Nested(QueueSchema), required=True)
    workers = fields.List(fields.Nested(WorkerSchema), required=True)
    stuck = fields.List(fields.Nested(StuckSchema), required=True)


class PersonSchema(Schema):
    """A user."""

    id = fields.String(required=True)
    username = fields.String(required=True)
    name = fields.String(required=True)
    email = fields.String(required=True, allow_none=True)
    role = fields.String(required=True, validate=validate.OneOf([role.value for role in Role]))
    created_at = fields.AwareDateTime(required=True)
    disabled_at = fields.AwareDateTime(required=True, allow_none=True)
    has_second_factor = fields.Boolean(required=True)


class PeoplePageSchema(PageSchema):
    """One page of users, the newest first."""

    items = fields.List(fields.Nested(PersonSchema), required=True)


class NewRoleSchema(Schema):
    """The role of a user."""

    role = fields.String(required=True, validate=validate.OneOf([role.value for role in Role]))


class AuditQuerySchema(PageQuerySchema):
    """Filters for events."""

    act = fields.String(load_default=None, validate=validate.OneOf([act.value for act in Act]))
    by = fields.String(
        load_default=None,
        validate=[PRINTABLE, validate.Length(max=64)],
        metadata={"description": "A username or id."},
    )
    object = fields.String(
        load_default=None,
        validate=[PRINTABLE, validate.Length(max=64)],
        metadata={"description": "The id of the object, or a username."},
    )
    address = fields.String(load_default=None, validate=[PRINTABLE, validate.Length(max=45)])
    since = fields.Date(load_default=None, metadata={"description": "The first day, in UTC."})
    until = fields.Date(load_default=None, metadata={"description": "The last day, in UTC."})


class EventSchema(Schema):
    """An event of the audit log."""

    id = fields.Integer(required=True)
    at = fields.AwareDateTime(required=True)
    act = fields.String(required=True)
    actor_id = fields.String(required=True, allow_none=True)
    actor = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "A username; null if there was none, or the account was deleted."},
    )
    object_id = fields.String(required=True, allow_none=True)
    address = fields.String(required=True)
    detail = fields.String(required=True, allow_none=True)


class EventsPageSchema(PageSchema):
    """One page of the audit log, newest event first."""

    items = fields.List(fields.Nested(EventSchema), required=True)
