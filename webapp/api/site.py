"""What the live versions achieve on this site's confirmed scans."""

from __future__ import annotations

from typing import Any

from flask import g
from werkzeug.exceptions import NotFound

from webapp.api.access import blueprint, documented
from webapp.api.schemas import SiteFiguresSchema
from webapp.confirmed import newest_figures
from webapp.extensions import db
from webapp.models import JobStatus, User


@blueprint.get("/site-figures")
@documented("read_site_figures", 404)
@blueprint.response(200, SiteFiguresSchema)
def site_figures() -> dict[str, Any]:
    """Get the newest site figures; for administrators."""
    person = db.session.get_one(User, g.token_owner_id)
    done = newest_figures(JobStatus.DONE) if person.is_admin else None
    if done is None:
        raise NotFound(
            "No site figures have been computed yet."
            if person.is_admin
            else "Site figures are for administrators."
        )
    return {"computed_at": done.finished_at, "versions": done.figures or []}
