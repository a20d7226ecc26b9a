"""Rate limits for costly actions, counted per user across all their browsers and API tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from webapp.audit import whose_request
from webapp.web_extensions import limiter


def per_person(rate: str | Callable[[], str], scope: str) -> Any:
    """Return a decorator for views that a person may ask for so often, all of one scope together.

    Args:
        rate: in Flask-Limiter's notation, or what returns it.
    """
    return limiter.shared_limit(rate, scope=scope, key_func=lambda: str(whose_request()))


within_opinion_rate = per_person("120 per minute", "opinions")
"""Decorates what gives and withdraws opinions: more than a person can read."""
within_sharing_rate = per_person("30 per minute", "sharing")
"""Decorates what shares scans, which tells whether a username exists."""
within_change_rate = per_person("600 per minute", "changes")
"""Decorates what queues, cancels and deletes scans, one by one or a selection."""
within_settings_rate = per_person("20 per minute", "settings")
"""Decorates what a person sets for themselves."""
within_test_rate = per_person("6 per minute", "test messages")
"""Decorates what sends test messages."""
