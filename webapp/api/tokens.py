"""The scopes and expiry of a request's token."""

from __future__ import annotations

from http import HTTPMethod
from typing import Any

from flask import g

from webapp.api.access import blueprint, operation
from webapp.api.schemas import TokenSchema
from webapp.models import ApiToken


@operation(HTTPMethod.GET, "/token", "read_token", None)
@blueprint.response(200, TokenSchema)
def own_token() -> dict[str, Any]:
    """Get the scopes and the expiry of your token."""
    token: ApiToken = g.api_token
    return {
        "name": token.name,
        "username": token.user.username,
        "role": token.user.role,
        "scopes": token.granted,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
    }
