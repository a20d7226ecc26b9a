"""Common to all administrator pages: access control, live updates and paging."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from flask import (
    Blueprint,
    Response,
    abort,
    flash,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import ColumnElement, Row, Select, func, select

from webapp.accounts.second_factors import lacks_required_factor
from webapp.audit import record
from webapp.extensions import Base, db
from webapp.forms import is_id
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import Act, JobStatus, Leased, cancel, queue_again
from webapp.paging import PageNumbers, requested_page
from webapp.web_extensions import login_manager

ROWS_PER_PAGE = 25
REFUSED = 400  # A rejected form.
STOP_POLLING = 286  # htmx's own status: show this response, then stop polling.

blueprint = Blueprint("admin", __name__, url_prefix="/admin")


@blueprint.before_request
def admit_admins_only() -> ResponseReturnValue | None:
    """Redirect anonymous users to the login, and administrators without a required second factor to
    their account; return 404 to other users.
    """
    if not current_user.is_authenticated:
        answer: ResponseReturnValue = login_manager.unauthorized()
        return answer
    if not current_user.is_admin:
        abort(404)
    if lacks_required_factor(current_user):
        flash("Administrators must set up a second factor first.", "warning")
        return redirect(url_for("auth.account", _anchor="second-factor"))
    ids = (value for value in (request.view_args or {}).values() if isinstance(value, str))
    if not all(map(is_id, ids)):
        abort(404)
    return None


def live_page(name: str, *, pending: bool, status: int = 200, **context: Any) -> Response:
    """Render `admin/<name>.html` or, for htmx requests under …/progress, its part
    `admin/_<name>.html`.

    The fragment gets status 304 while it is unchanged, and ends the polling once nothing is
    `pending`.
    """
    if not request.path.endswith("/progress"):
        return make_response(
            render_template(f"admin/{name}.html", pending=pending, **context), status
        )
    part = make_response(
        render_template(f"admin/_{name}.html", pending=pending, **context),
        200 if pending else STOP_POLLING,
    )
    part.cache_control.private = True
    part.cache_control.no_cache = True
    part.add_etag()
    part.make_conditional(request)
    return part


def requested_tab(tabs: Collection[str]) -> str:
    """Return the tab that is requested in the address; the first tab by default."""
    name = request.args.get("show", "")
    return name if name in tabs else next(iter(tabs))


def warn_of_delay() -> None:
    """Tell the administrator that no worker could be notified of a new job."""
    flash(
        "The message broker is unavailable, so this may start with a delay. Your request has been"
        " saved.",
        "warning",
    )


def cancel_job(table: type[Leased], job_id: str, act: Act) -> bool:
    """Cancel a job, record that and commit; return False if it has ended or does not exist. Its
    worker notices at its next progress report.
    """
    cancelled = cancel(table, table.id == job_id)
    if cancelled:
        record(act, job_id)
    db.session.commit()
    return cancelled


def start_again(table: type[Leased], job_id: str, act: Act, **columns: Any) -> bool | None:
    """Queue a failed or canceled job of the train workers again with these columns, record that,
    commit and notify a worker; return whether a worker could be notified, or None if the job is
    neither failed nor canceled.
    """
    queued = queue_again(table, table.id == job_id, **columns)
    if queued:
        record(act, job_id)
    db.session.commit()
    return nudge(TRAIN_MODEL) if queued else None


def flash_start(was_nudged: bool | None, otherwise: str) -> None:
    """Show the outcome of `start_again`: the message `otherwise` if nothing was queued."""
    if was_nudged is None:
        flash(otherwise, "warning")
    elif not was_nudged:
        warn_of_delay()


def is_pending(job: Leased) -> bool:
    """Return whether `job` is queued or running."""
    return not JobStatus(job.status).is_final


@dataclass(frozen=True)
class Page(PageNumbers):
    """The rows of one page of a long table."""

    rows: Sequence[Row[*tuple[Any, ...]]]


def page_of(table: type[Base], rows: Select[*tuple[Any, ...]], *where: ColumnElement[bool]) -> Page:
    """Return the requested page of `rows`, one for each row of `table` with these conditions."""
    total = db.session.scalar(select(func.count()).select_from(table).where(*where)) or 0
    page = requested_page(total, ROWS_PER_PAGE)
    shown = rows.limit(ROWS_PER_PAGE).offset((page.number - 1) * ROWS_PER_PAGE)
    return Page(page.number, page.pages, db.session.execute(shown).all())
