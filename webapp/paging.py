"""Long lists, one page at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flask import request


@dataclass(frozen=True)
class PageNumbers:
    """Which page of a list is shown; pages count from 1."""

    number: int
    pages: int

    @property
    def previous(self) -> int | None:
        """The previous page; None on the first."""
        return self.number - 1 if self.number > 1 else None

    @property
    def next(self) -> int | None:
        """The next page; None on the last."""
        return self.number + 1 if self.number < self.pages else None


def requested_page(total: int, per_page: int) -> PageNumbers:
    """Return the page requested by the query string `?page=` of a list of `total` rows: the first
    if the number is invalid, the last if it is too large.
    """
    text = request.args.get("page", "1")
    # Nine digits are more pages than any list has, and an OFFSET that every database supports.
    number = max(1, int(text)) if re.fullmatch(r"[0-9]{1,9}", text) else 1
    pages = max(1, -(-total // per_page))
    return PageNumbers(min(number, pages), pages)
