"""Schemas of the images of data sets, label corrections, and analyses of data sets."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields, validate

from ml.catalogue import BLEEDING_TYPES
from webapp.admin.dataset_questions import FOLDS, SEED
from webapp.api.lab_schemas import WorkSchema, an_id
from webapp.api.lists import PageQuerySchema, PageSchema
from webapp.api.schemas import COUNT, PRINTABLE, SHARE
from webapp.extensions import LARGEST_INTEGER
from webapp.learning.corrections import MAX_NAME
from webapp.learning.dataset_images import KINDS, LABELS, SORTS
from webapp.models import AnalysisKind
from webapp.scans.stored_volume import WINDOWS

A_LABEL = validate.OneOf(list(LABELS))


def a_number(**arguments: Any) -> fields.Integer:
    """Return a field for the number of an image, a patient or a group."""
    return fields.Integer(required=True, validate=COUNT, **arguments)


def a_filter(*choices: str) -> fields.String:
    """Return an optional filter field with one of these values."""
    return fields.String(load_default=None, validate=validate.OneOf(choices))


class DatasetImagesQuerySchema(PageQuerySchema):
    """Filters and order for the images of a data set."""

    label = a_filter(*LABELS)
    type = a_filter(*BLEEDING_TYPES)
    problem = a_filter("any", *KINDS)
    mask = a_filter("yes", "no")
    size = fields.String(
        load_default=None,
        validate=validate.Regexp(r"^[0-9]{1,6}x[0-9]{1,6}$"),
        metadata={"description": "Such as 512x512, one of the common sizes of the data set."},
    )
    source = fields.String(load_default=None, validate=[PRINTABLE, validate.Length(1, 200)])
    patient = fields.Integer(load_default=None, validate=validate.Range(1, LARGEST_INTEGER))
    group = fields.Integer(load_default=None, validate=validate.Range(1, LARGEST_INTEGER))
    sort = fields.String(
        load_default=None,
        validate=validate.OneOf([name for name in SORTS if name]),
        metadata={"description": "If omitted, as in the data set."},
    )


class DatasetPictureQuerySchema(Schema):
    """How an image of a data set is rendered."""

    window = fields.String(
        load_default="brain",
        validate=validate.OneOf(list(WINDOWS)),
        metadata={"description": "Ignored for images without Hounsfield units."},
    )
    outline = fields.String(
        load_default="yes",
        validate=validate.OneOf(("yes", "no")),
        metadata={"description": "Whether to draw the outline, if the data set has one."},
    )


class ImageProblemSchema(Schema):
    """What is wrong with an image."""

    kind = fields.String(required=True)
    sentence = fields.String(required=True)


class DatasetImageSummarySchema(Schema):
    """An image of a data set."""

    number = a_number(metadata={"description": "From 0, in the order of the data set."})
    label = fields.String(required=True, validate=A_LABEL)
    types = fields.List(fields.String(), required=True)
    patient = a_number(allow_none=True)
    group = a_number(allow_none=True)
    source = fields.String(required=True)
    width = a_number()
    height = a_number()
    has_outline = fields.Boolean(required=True)
    has_thumbnail = fields.Boolean(required=True)
    problems = fields.List(fields.Nested(ImageProblemSchema), required=True)


class DatasetImagesPageSchema(PageSchema):
    """One page of the images of a data set."""

    items = fields.List(fields.Nested(DatasetImageSummarySchema), required=True)
    unmatched = fields.List(
        fields.String(),
        required=True,
        metadata={"description": "Filters with a size or source that this data set does not have."},
    )


class CorrectionSchema(Schema):
    """A pending label correction."""

    number = a_number()
    was = fields.String(required=True, validate=A_LABEL)
    label = fields.String(required=True, validate=A_LABEL)
    reason = fields.String(required=True)
    by = fields.String(required=True, allow_none=True)
    at = fields.AwareDateTime(required=True)


class CorrectionsPageSchema(PageSchema):
    """One page of pending corrections."""

    items = fields.List(fields.Nested(CorrectionSchema), required=True)


class DatasetImageSchema(DatasetImageSummarySchema):
    """An image with everything known about it."""

    name = fields.String(required=True, metadata={"description": "Its path in the data set."})
    bytes = a_number()
    sha256 = fields.String(required=True)
    dhash = fields.String(required=True)
    gray = fields.Float(required=True, allow_none=True)
    head_share = fields.Float(required=True, allow_none=True, validate=SHARE)
    slice = fields.Integer(required=True, allow_none=True)
    place_mm = fields.Float(required=True, allow_none=True)
    near_duplicates = fields.List(fields.Nested(DatasetImageSummarySchema), required=True)
    correction = fields.Nested(CorrectionSchema, required=True, allow_none=True)


class CorrectLabelSchema(Schema):
    """The label that an image should have, and why."""

    label = fields.String(required=True, validate=A_LABEL)
    reason = fields.String(
        load_default="",
        validate=[PRINTABLE, validate.Length(max=200)],
        metadata={
            "description": "Stored with the new version. Please do not include patient names."
        },
    )


class ApplyCorrectionsSchema(Schema):
    """The name of the next version of a data set."""

    name = fields.String(required=True, validate=[PRINTABLE, validate.Length(1, MAX_NAME)])


class SplitQuestionSchema(Schema):
    """The folds and the seed of a training run."""

    folds = fields.Integer(load_default=FOLDS, validate=validate.Range(2, 10))
    seed = fields.Integer(load_default=SEED, validate=validate.Range(0, LARGEST_INTEGER))


class CompareDatasetsSchema(Schema):
    """The data set to compare another one with."""

    other_id = an_id()


class DatasetQuestionSchema(WorkSchema):
    """An analysis of data sets by a train worker."""

    kind = fields.Enum(AnalysisKind, by_value=fields.String, required=True)
    dataset_id = fields.String(required=True)
    other_id = fields.String(required=True, allow_none=True)
    result = fields.Dict(
        required=True,
        allow_none=True,
        metadata={"description": "The result, once it is available."},
    )
