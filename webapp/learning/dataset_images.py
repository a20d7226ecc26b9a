"""Queries for the images of a data set: filtered, sorted, as a page or with neighbors.

Every query is bounded: it reads rows of one data set only, and returns one page of them at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute
from wtforms import IntegerField, SelectChoice, SelectField
from wtforms.validators import NumberRange, Optional

from ml.catalogue import BLEEDING_TYPES
from webapp.display import display_name
from webapp.extensions import LARGEST_INTEGER, db
from webapp.forms import FilterForm
from webapp.models import DUPLICATE, Dataset, DatasetImage
from webapp.paging import PageNumbers, requested_page

PER_PAGE = 60
LABELS = {"positive": 1, "negative": 0, "unlabeled": None}
KINDS = {
    "left out": "Left out: cannot be read",
    "mask left out": "Outline left out",
    "contradiction": "Near-duplicate with another label",
    DUPLICATE: "Has near-duplicates",
    "assumption": "Something was assumed",
}
SORTS: dict[str, tuple[str, ColumnElement[Any] | InstrumentedAttribute[int], bool]] = {
    "": ("As in the data set", DatasetImage.number, False),
    "largest": ("Largest first", DatasetImage.width * DatasetImage.height, True),
    "smallest": ("Smallest first", DatasetImage.width * DatasetImage.height, False),
    "brightest": ("Brightest first", func.coalesce(DatasetImage.gray, -1), True),
    "darkest": ("Darkest first", func.coalesce(DatasetImage.gray, 2), False),
    "largest-head": ("Largest head first", func.coalesce(DatasetImage.head_share, -1), True),
    "smallest-head": ("Smallest head first", func.coalesce(DatasetImage.head_share, 9), False),
    "file-size": ("Largest file first", DatasetImage.bytes, True),
    "group": ("By group", func.coalesce(DatasetImage.group, LARGEST_INTEGER), False),
}
"""Sort orders by name: label, column, and whether the order is descending."""
SHOWN = (
    DatasetImage.number,
    (DatasetImage.number + 1).label("position"),
    DatasetImage.label,
    DatasetImage.group,
    DatasetImage.kinds,
    DatasetImage.width,
    DatasetImage.height,
    DatasetImage.thumbnail_at,
)
"""The columns that the grid shows."""


def number_field(label: str) -> IntegerField:
    """Return a field for the number of a patient or a group."""
    return IntegerField(
        label,
        [Optional(), NumberRange(1, LARGEST_INTEGER, "Enter a number from 1.")],
        render_kw={"inputmode": "numeric", "type": "number", "min": 1},
    )


class ImageFilterForm(FilterForm):
    """Filters and order of the images of a data set."""

    label = SelectField(
        "Label",
        choices=[
            SelectChoice("", "Any"),
            SelectChoice("positive", "Hemorrhage"),
            SelectChoice("negative", "Normal"),
            SelectChoice("unlabeled", "Without a label"),
        ],
        default="",
    )
    type = SelectField(
        "Type of hemorrhage",
        choices=[
            SelectChoice("", "Any"),
            *(SelectChoice(name, display_name(name)) for name in BLEEDING_TYPES),
        ],
        default="",
    )
    problem = SelectField(
        "Problem",
        choices=[
            SelectChoice("", "With or without"),
            SelectChoice("any", "Any problem"),
            *(SelectChoice(kind, text) for kind, text in KINDS.items()),
        ],
        default="",
    )
    mask = SelectField(
        "Outline",
        choices=[
            SelectChoice("", "With or without"),
            SelectChoice("yes", "With"),
            SelectChoice("no", "Without"),
        ],
        default="",
    )
    size = SelectField("Size", default="")
    source = SelectField("Source", default="")
    patient = number_field("Patient no.")
    group = number_field("Group no.")
    sort = SelectField(
        "Order",
        choices=[SelectChoice(name, text) for name, (text, *_) in SORTS.items()],
        default="",
    )

    def __init__(self, dataset: Dataset, formdata: Any) -> None:
        super().__init__(formdata)
        distributions = (dataset.exploration or {}).get("distributions") or {}
        self.size.choices = [
            SelectChoice("", "Any"),
            *(
                SelectChoice(f"{width}x{height}", f"{width} × {height} ({count})")
                for width, height, count in distributions.get("common_sizes", ())
            ),
        ]
        self.source.choices = [
            SelectChoice("", "Any"),
            *(
                SelectChoice(name, f"{name or 'no folder'} ({count})")
                for name, count in distributions.get("sources", {}).items()
            ),
        ]
        self.has_sources = len(self.source.choices) > 1


def images_of(dataset_id: str, chosen: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """Return the conditions of the images of a data set that match the filters."""
    image = DatasetImage
    conditions: list[ColumnElement[bool]] = [image.dataset_id == dataset_id]
    if name := chosen.get("label"):
        label = LABELS[name]
        conditions.append(image.label.is_(None) if label is None else image.label == label)
    if name := chosen.get("type"):
        conditions.append(image.types.contains(f"|{name}|", autoescape=True))
    if kind := chosen.get("problem"):
        any_problem = and_(image.kinds != "", image.kinds != f"|{DUPLICATE}|")
        condition = image.kinds.contains(f"|{kind}|", autoescape=True)
        conditions.append(any_problem if kind == "any" else condition)
    if mask := chosen.get("mask"):
        conditions.append(image.mask.is_not(None) if mask == "yes" else image.mask.is_(None))
    if size := chosen.get("size"):
        width, height = map(int, size.split("x"))
        conditions += [image.width == width, image.height == height]
    if source := chosen.get("source"):
        conditions.append(image.source == source)
    if patient := chosen.get("patient"):
        conditions.append(image.patient == patient)
    if group := chosen.get("group"):
        conditions.append(image.group == group)
    return conditions


def page_of_images(
    dataset_id: str, chosen: Mapping[str, Any]
) -> tuple[PageNumbers, int, Sequence[Row[Any]]]:
    """Return the requested page, the number of images that match the filters, and the images on the
    page.
    """
    conditions = images_of(dataset_id, chosen)
    total = db.session.scalar(select(func.count()).select_from(DatasetImage).where(*conditions))
    page = requested_page(total or 0, PER_PAGE)
    rows = _sorted(select(*SHOWN).where(*conditions), chosen, backward=False)
    shown = rows.limit(PER_PAGE).offset((page.number - 1) * PER_PAGE)
    return page, total or 0, db.session.execute(shown).all()


def neighbors_of(
    dataset_id: str, number: int, chosen: Mapping[str, Any]
) -> tuple[int | None, int | None]:
    """Return the numbers of the images before and after one, in the order of the page."""
    _, value, descends = SORTS[chosen.get("sort", "")]
    current = db.session.scalar(
        select(value).where(DatasetImage.dataset_id == dataset_id, DatasetImage.number == number)
    )
    numbers: list[int | None] = []
    for backward in (True, False):
        comes = value < current if descends != backward else value > current
        beyond = DatasetImage.number < number if backward else DatasetImage.number > number
        rows = select(DatasetImage.number).where(
            *images_of(dataset_id, chosen), or_(comes, and_(value == current, beyond))
        )
        numbers.append(db.session.scalar(_sorted(rows, chosen, backward=backward).limit(1)))
    return numbers[0], numbers[1]


def _sorted(
    rows: Select[*tuple[Any, ...]], chosen: Mapping[str, Any], *, backward: bool
) -> Select[*tuple[Any, ...]]:
    _, value, descends = SORTS[chosen.get("sort", "")]
    number = DatasetImage.number
    return rows.order_by(
        value.desc() if descends != backward else value.asc(),
        number.desc() if backward else number.asc(),
    )
