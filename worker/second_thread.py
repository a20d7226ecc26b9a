"""A second thread of a predict worker, so that two batches of scans are at work at one time.

Much of a batch is work for one core: decoding, pictures, rows. While one batch is computed on all
cores (`worker.prediction.answer`), the next is claimed and decoded, and the previous one stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from flask import Flask

from webapp.models import Scan
from worker import leases
from worker.heartbeat import heartbeat
from worker.prediction import answer_next_scans
from worker.retries import in_transaction, storage_is_back

LOOK_S = 0.1
"""How often the thread looks for scans. Most single slices are answered before it looks once."""
PAUSE_S = 0.01
"""Between two batches, so that whoever waits for the end of one need not wait for the next."""


@contextmanager
def second_thread(app: Flask) -> Iterator[Callable[[], bool]]:
    """Answer scans in a second thread while the first one does. Yield a function that waits for its
    current batch, if there is one, and returns whether it has answered any since it was last asked.
    """
    over, batch = threading.Event(), threading.Lock()
    has_answered = False

    def answer_meanwhile() -> None:
        nonlocal has_answered
        pause = LOOK_S
        with app.app_context():
            while not over.wait(pause) and not heartbeat().stopping():
                with batch:
                    # Not beside a report or a heat map, to which a death would be counted.
                    answered = (
                        heartbeat().holds_any(Scan)
                        and in_transaction(lambda: leases.is_any_waiting(Scan))
                        and storage_is_back()
                        and answer_next_scans()
                    )
                    has_answered |= answered
                pause = PAUSE_S if answered else LOOK_S

    def answered_since() -> bool:
        nonlocal has_answered
        with batch:
            answered, has_answered = has_answered, False
        if thread.done():
            thread.result()  # Its errors are those of the task.
        return answered

    with ThreadPoolExecutor(1) as threads:
        thread = threads.submit(answer_meanwhile)
        try:
            yield answered_since
        finally:
            over.set()
