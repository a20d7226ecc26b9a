"""What browsers are told they may do with an answer, and what they must do with our cookies."""

from __future__ import annotations

from flask import Flask, Response, current_app, request
from flask.sessions import SecureCookieSessionInterface

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # NiiVue brings the pictures of its letters in its script.
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "object-src 'none'",
        "frame-ancestors 'none'",
    )
)
POLICIES = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # To ourselves in full, which the check of forms under TLS needs; to others nothing, since a
    # reset link is a secret.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": (
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STRICT_TRANSPORT_SECURITY = "max-age=31536000; includeSubDomains"


def init_policies(app: Flask) -> None:
    """Send the policies with every answer of `app`, and keep its cookies to TLS wherever there is
    TLS.
    """
    app.session_interface = TlsAwareSessions()
    app.after_request(add_policies)


def add_policies(answer: Response) -> Response:
    """Add the policies; a page that says nothing about caches is kept by none, not even by the
    browser's way back.
    """
    answer.headers.update(POLICIES)
    if over_tls():
        answer.headers["Strict-Transport-Security"] = STRICT_TRANSPORT_SECURITY
    if answer.mimetype == "text/html":
        answer.headers.setdefault("Cache-Control", "no-store")
    return answer


def over_tls() -> bool:
    """True if the browser speaks TLS to us or to a proxy: the operator says so, or the request
    does.
    """
    return bool(current_app.config["SESSION_COOKIE_SECURE"] or request.is_secure)


def cookie_name(name: str) -> str:
    """Return what a cookie is called; over TLS by a name that a browser takes from this very host
    alone.
    """
    return f"__Host-{name}" if over_tls() else name


class TlsAwareSessions(SecureCookieSessionInterface):
    """Flask's signed cookie, which never travels without TLS once it was given over TLS."""

    def get_cookie_name(self, app: Flask) -> str:
        """Return the name for this request."""
        return cookie_name(str(app.config["SESSION_COOKIE_NAME"]))

    def get_cookie_secure(self, app: Flask) -> bool:
        """Return whether the browser may send it over TLS only."""
        return over_tls()
