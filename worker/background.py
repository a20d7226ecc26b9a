"""When a predict worker interrupts work on a row: the worker shuts down, the lease is lost, or a
scan is waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from webapp.models import Leased, Scan
from worker import leases
from worker.heartbeat import heartbeat
from worker.retries import in_transaction

LOOK_S = 1.0
"""How often a worker checks the row and the queue of scans."""


def gives_way(table: type[Leased], row_id: str) -> Callable[[], bool]:
    """Return a function that says whether to interrupt low-priority work on a row: for the same
    reasons as `until_lost`, or because a live scan is waiting.
    """
    return until_lost(table, row_id, or_if=lambda: leases.is_any_waiting(Scan))


def until_lost(
    table: type[Leased], row_id: str, or_if: Callable[[], bool] = lambda: False
) -> Callable[[], bool]:
    """Return a function that says whether to interrupt work on a row: the worker was asked to stop,
    `or_if` returns True in a transaction, or this worker no longer holds the row. It queries the
    database at most once in `LOOK_S`.
    """
    mine, looked_at = heartbeat(), time.monotonic()

    def is_over() -> bool:
        nonlocal looked_at
        if mine.stopping():
            return True
        if time.monotonic() - looked_at < LOOK_S:
            return False
        looked_at = time.monotonic()
        return in_transaction(lambda: or_if() or not leases.renew(table, mine.owner, [row_id]))

    return is_over
