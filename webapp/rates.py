"""Rate limits for costly actions, counted per user across all their browsers and API tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from webapp.audit import whose_request
from webapp.web_extensions import limiter


def per_person(rate: str | Callable[[], str], scope: str) -> Any:
    """Return a decorator that limits how often a user may request a view, together with all views
    of one scope.

    Args:
        rate: in Flask-Limiter's notation, or a function that returns it.
    """
    return limiter.shared_limit(rate, scope=scope, key_func=lambda: str(whose_request()))


within_opinion_rate = per_person("120 per minute", "opinions")
"""Decorates views that give and withdraw opinions: more than a person can read."""
within_sharing_rate = per_person("30 per minute", "sharing")
"""Decorates views that share scans, which reveal whether a username exists."""
within_change_rate = per_person("600 per minute", "changes")
"""Decorates views that queue, cancel and delete scans, individually or as a selection."""
within_settings_rate = per_person("20 per minute", "settings")
"""Decorates views that change a user's own settings."""
within_test_rate = per_person("6 per minute", "test messages")
"""Decorates views that send test messages."""
