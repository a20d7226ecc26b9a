"""Security policies for browsers: response headers and cookie attributes."""

from __future__ import annotations

from flask import Flask, Response, current_app, request
from flask.sessions import SecureCookieSessionInterface

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # NiiVue contains its font textures as data: URLs.
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
    # The full referrer to this site, because the CSRF check over TLS needs it; nothing to others,
    # because the URL of a reset link is a secret.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": (
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STRICT_TRANSPORT_SECURITY = "max-age=31536000; includeSubDomains"


def init_policies(app: Flask) -> None:
    """Send the policies with every response of `app`, and restrict its cookies to TLS if TLS is
    used.
    """
    app.session_interface = TlsAwareSessions()
    app.after_request(add_policies)


def add_policies(answer: Response) -> Response:
    """Add the policies; pages without their own Cache-Control are never cached, not even for the
    browser's back button.
    """
    answer.headers.update(POLICIES)
    if over_tls():
        answer.headers["Strict-Transport-Security"] = STRICT_TRANSPORT_SECURITY
    if answer.mimetype == "text/html":
        answer.headers.setdefault("Cache-Control", "no-store")
    return answer


def over_tls() -> bool:
    """Return whether the browser uses TLS, according to the request or the operator's setting."""
    return bool(current_app.config["SESSION_COOKIE_SECURE"] or request.is_secure)


def cookie_name(name: str) -> str:
    """Return the name of a cookie; over TLS with the prefix that binds it to this host."""
    return f"__Host-{name}" if over_tls() else name


class TlsAwareSessions(SecureCookieSessionInterface):
    """Flask's signed session cookie; once set over TLS, it is only ever sent over TLS."""

    def get_cookie_name(self, app: Flask) -> str:
        """Return the name for this request."""
        return cookie_name(str(app.config["SESSION_COOKIE_NAME"]))

    def get_cookie_secure(self, app: Flask) -> bool:
        """Return whether the browser may send it over TLS only."""
        return over_tls()
