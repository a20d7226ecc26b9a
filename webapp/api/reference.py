"""The documentation of the API as a page, rendered by Swagger UI from the OpenAPI document."""

from __future__ import annotations

from flask import Blueprint, render_template, url_for

# Not part of the API itself: browsers open it without a token.
blueprint = Blueprint("reference", __name__, url_prefix="/api/v1")


@blueprint.get("/docs")
def show() -> str:
    """Show the documentation."""
    return render_template("api/reference.html", document=url_for("api-docs.openapi_json"))
