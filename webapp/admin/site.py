"""The page of this site: its confirmed scans, the performance of the live models on them, and the
data sets and calibrated versions made from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Response, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from wtforms import DateField, IntegerField, SelectChoice, SelectField
from wtforms.validators import DataRequired, NumberRange, Optional

from webapp.admin.pages import REFUSED, blueprint, is_pending, live_page, warn_of_delay
from webapp.display import display_name, name_of_version
from webapp.extensions import db
from webapp.forms import PostedForm, TextField, at_most, is_id
from webapp.learning.confirmed import (
    MAX_DATASET_NAME,
    Filter,
    RequestRefused,
    confirmed_counts,
    disputed_scans,
    newest_figures,
    opinions_since,
    request_calibration,
    request_dataset,
    request_figures,
)
from webapp.models import Dataset, JobStatus, ModelVersion, live_version

DISPUTED_SHOWN = 20
MADE_SHOWN = 20
MOST_OPINIONS = 10


class ConfirmedForm(PostedForm):
    """Name and filters of a data set of confirmed scans."""

    name = TextField(
        "Name", [DataRequired("Enter a name for the data set."), at_most(MAX_DATASET_NAME)]
    )
    since = DateField("Submitted from (UTC)", [Optional()])
    until = DateField("To (UTC)", [Optional()])
    kind = SelectField(
        "Scans",
        choices=[
            SelectChoice("", "Series and single slices"),
            SelectChoice("series", "Series"),
            SelectChoice("slice", "Single slices"),
        ],
        default="",
    )
    opinions = IntegerField(
        "Readers who must agree",
        [
            Optional(),
            NumberRange(1, MOST_OPINIONS, f"Enter a number from 1 to {MOST_OPINIONS}."),
        ],
        default=1,
        description="Scans with fewer are excluded.",
    )

    @property
    def chosen(self) -> Filter:
        """Return the filter."""
        return Filter(
            since=self.since.data.isoformat() if self.since.data else None,
            until=self.until.data.isoformat() if self.until.data else None,
            kind=self.kind.data or "",
            opinions=self.opinions.data or 1,
        )


@dataclass(frozen=True)
class OnConfirmedScans:
    """What is known about a candidate and the live version on this site's confirmed scans.

    Attributes:
        computed_at: when the newest site figures were computed; None if there are none.
        figures: "own" for the candidate and "live", each if it is among these figures
            (`ml.evaluation.site_figures.FiguresOfSite` as JSON).
        confirmed: the current number of confirmed scans.
        dataset: the newest ready data set of confirmed scans.
    """

    computed_at: datetime | None
    figures: Mapping[str, Mapping[str, Any]]
    confirmed: int
    dataset: Dataset | None


def on_confirmed_scans(candidate: ModelVersion, live: ModelVersion) -> OnConfirmedScans:
    """Return what is known about both on this site's confirmed scans."""
    done, counts = newest_figures(JobStatus.DONE), confirmed_counts()
    by_id = {one["version_id"]: one["all"] for one in (done.figures if done else None) or ()}
    return OnConfirmedScans(
        done.finished_at if done else None,
        {
            whose: by_id[version.id]
            for whose, version in (("own", candidate), ("live", live))
            if version.id in by_id and by_id[version.id]["scans"]
        },
        counts["present"] + counts["absent"],
        db.session.scalar(
            select(Dataset)
            .where(Dataset.made_from.is_not(None), Dataset.status == JobStatus.DONE)
            .order_by(Dataset.created_at.desc(), Dataset.id)
            .limit(1)
        ),
    )


@blueprint.get("/site")
@blueprint.get("/site/progress", endpoint="site_progress")
def site() -> Response:
    """Show the confirmed scans, the site figures, and the forms to use them."""
    return show_site(ConfirmedForm(formdata=None))


def show_site(form: ConfirmedForm, status: int = 200) -> Response:
    """Render the page with this form."""
    newest, done = newest_figures(), newest_figures(JobStatus.DONE)
    computed = db.session.scalars(
        select(Dataset)
        .where(Dataset.made_from.is_not(None))
        .order_by(Dataset.created_at.desc(), Dataset.id)
        .limit(MADE_SHOWN)
    ).all()
    return live_page(
        "site",
        status=status,
        pending=newest is not None and is_pending(newest),
        newest=newest,
        done=done,
        figures=[_with_rows(version) for version in (done.figures if done else None) or ()],
        since=opinions_since(done) if done else 0,
        counts=confirmed_counts(),
        disputed=disputed_scans(DISPUTED_SHOWN),
        computed=computed,
        live={reads: version for reads in ("series", "slice") if (version := live_version(reads))},
        form=form,
    )


def _with_rows(version: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a version with its `name` and `rows`: all scans, then by month."""
    row = db.session.get(ModelVersion, version["version_id"])
    name = name_of_version(row) if row else display_name(version["architecture"])
    rows = [{**version["all"], "month": "All"}, *version["months"]]
    return {**version, "name": name, "rows": rows}


@blueprint.post("/site/figures")
def compute_figures() -> ResponseReturnValue:
    """Have a worker compute the site figures."""
    if not request_figures(current_user.id):
        warn_of_delay()
    return redirect(url_for("admin.site", _anchor="figures"))


@blueprint.post("/site/datasets")
def make_dataset() -> ResponseReturnValue:
    """Have a worker make a data set of confirmed scans."""
    form = ConfirmedForm()
    if form.validate_on_submit():
        try:
            dataset, was_nudged = request_dataset(form.name.data, form.chosen, current_user.id)
        except RequestRefused as err:
            form.form_errors.append(str(err))
        else:
            if not was_nudged:
                warn_of_delay()
            return redirect(url_for("admin.dataset", dataset_id=dataset.id))
    return show_site(form, REFUSED)


@blueprint.post("/site/calibrate")
def calibrate_version() -> ResponseReturnValue:
    """Have a worker calibrate a live version on a data set of this site."""
    version_id, dataset_id = request.form.get("version", ""), request.form.get("dataset", "")
    version = db.session.get(ModelVersion, version_id) if is_id(version_id) else None
    dataset = db.session.get(Dataset, dataset_id) if is_id(dataset_id) else None
    if version is None or dataset is None:
        flash("Choose a version and a data set.", "warning")
        return redirect(url_for("admin.site", _anchor="calibrate"))
    try:
        run_id, was_nudged = request_calibration(version, dataset, current_user.id)
    except RequestRefused as err:
        flash(str(err), "warning")
        return redirect(url_for("admin.site", _anchor="calibrate"))
    if not was_nudged:
        warn_of_delay()
    return redirect(url_for("admin.run", run_id=run_id))
