"""The cases of the lab, and how they are carried out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping

from bench.chaos.lab import damage, data, promotions, shadows
from bench.chaos.lab.killed_jobs import JOBS, killed_in
from bench.chaos.lab.maintenance import WORK
from bench.chaos.lab.tools import Lab

CASES: Mapping[str, Callable[[Lab], str]] = {
    **{f"worker killed during: {what}": killed_in(job) for what, job in JOBS.items()},
    **{f"process killed during: {what}": work.act for what, work in WORK.items()},
    "damaged files of a candidate": damage.candidate_damaged,
    "damaged files of the live version": damage.live_damaged,
    "a shadow that fails on every scan": shadows.shadow_fails,
    "a shadow that kills its worker on every scan": shadows.shadow_kills,
    "worker killed during: a shadow of past scans": shadows.past_shadow,
    "two promotions at once": promotions.promoted_at_once,
    "a curve of a million points": data.long_curve,
    "a data set deleted after an evaluation on it": data.dataset_deleted,
}


def carry_out(lab: Lab, names: Collection[str] = ()) -> None:
    """Carry out the cases one after the other, submitting a scan alongside each.

    Args:
        names: only the cases whose names contain one of these; all if empty.
    """
    lab.shorten_predictions()
    for case, act in CASES.items():
        if names and not any(name in case for name in names):
            continue
        lab.submit_picture()
        began = time.monotonic()
        try:
            end = lab.ends[case] = act(lab)
            lab.delete_comparisons()
        except Exception as err:  # noqa: BLE001 - reported at the end, like every other.
            end = f"{type(err).__name__}: {err}"
            lab.errors.append(f"lab, {case}: {end}")
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {case}: {end}\n")
        sys.stdout.flush()
