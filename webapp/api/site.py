"""This site: its confirmed scans, and the performance of the live versions on them."""

from __future__ import annotations

from http import HTTPMethod
from typing import Any

from flask import g
from werkzeug.exceptions import Conflict, NotFound

from webapp.api.access import blueprint, operation
from webapp.api.lab_schemas import SiteFiguresRequestSchema, SiteSchema
from webapp.api.schemas import SiteFiguresSchema
from webapp.api.work import work_as_json
from webapp.learning.confirmed import (
    confirmed_counts,
    disputed_scans,
    newest_figures,
    opinions_since,
    request_figures,
)
from webapp.models import JobStatus, Scope, SiteFigures

DISPUTED_SHOWN = 20
GET, POST = HTTPMethod.GET, HTTPMethod.POST


@operation(GET, "/site", "read_site", Scope.ADMIN)
@blueprint.response(200, SiteSchema)
def read_site() -> dict[str, Any]:
    """Get the number of confirmed and disputed scans, and the age of the site figures."""
    newest, done, counts = newest_figures(), newest_figures(JobStatus.DONE), confirmed_counts()
    return {
        "confirmed_present": counts["present"],
        "confirmed_absent": counts["absent"],
        "disputed": counts["disputed"],
        "disputed_scans": [
            {
                "scan_id": scan.id,
                "submitter": scan.user.username,
                "present": present,
                "absent": absent,
            }
            for scan, present, absent in disputed_scans(DISPUTED_SHOWN)
        ],
        "newest_request": newest and work_as_json(newest),
        "figures": done and figures_as_json(done),
        "opinions_since": opinions_since(done) if done else 0,
    }


@operation(GET, "/site-figures", "read_site_figures", Scope.ADMIN, 404)
@blueprint.response(200, SiteFiguresSchema)
def site_figures() -> dict[str, Any]:
    """Get the newest site figures."""
    done = newest_figures(JobStatus.DONE)
    if done is None:
        raise NotFound("No site figures have been computed yet.")
    return figures_as_json(done)


@operation(POST, "/site-figures", "compute_site_figures", Scope.ADMIN)
@blueprint.response(202, SiteFiguresRequestSchema)
def compute_site_figures() -> dict[str, Any]:
    """Have the site figures computed; only one computation can be queued at a time."""
    request_figures(g.token_owner_id)
    newest = newest_figures()
    if newest is None:
        raise Conflict("The request was deleted in the meantime.")
    return work_as_json(newest)


def figures_as_json(done: SiteFigures) -> dict[str, Any]:
    """Return site figures in the form of `SiteFiguresSchema`."""
    return {"computed_at": done.finished_at, "versions": done.figures or []}
