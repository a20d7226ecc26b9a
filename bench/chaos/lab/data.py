"""A curve of a million points, and a data set that is deleted after an evaluation on it."""

from __future__ import annotations

import time

from sqlalchemy import select

from bench.chaos.lab.learning_jobs import request_calibration
from bench.chaos.lab.tools import Lab, require
from webapp.models import CURVE_STEPS, Dataset, Evaluation, TrainingRun
from worker.learning.training_curves import AVERAGED_STEPS

POINTS = 1_000_000
CURVE_WITHIN_S = 5.0


def long_curve(lab: Lab) -> str:
    """Have a run report a million points: its worker averages and writes them, and they are read
    quickly.
    """
    lab.stack.curve.write_text(str(POINTS), encoding="utf-8")
    run_id = request_calibration(lab)
    lab.done(TrainingRun, run_id)
    require(not lab.stack.curve.exists(), "no points were reported")
    began = time.monotonic()
    answer = lab.api("GET", f"/runs/{run_id}", None, 200)
    took_s, points = time.monotonic() - began, len(answer["curves"])
    expected = CURVE_STEPS // AVERAGED_STEPS + CURVE_STEPS
    require(points == expected and took_s < CURVE_WITHIN_S, f"{points}, {took_s:.1f} s")
    return (
        f"a worker wrote {POINTS:,} of each of two metrics as {points:,} rows, read in"
        f" {took_s:.2f} s"
    )


def dataset_deleted(lab: Lab) -> str:
    """Delete a data set after its evaluations have ended: they are deleted with it."""
    dataset_id = lab.request_import("deleted")
    lab.done(Dataset, dataset_id)
    body = {"version_id": lab.live("slice")[0], "dataset_id": dataset_id}
    evaluation_id = str(lab.api("POST", "/evaluations", body, 202)["id"])
    lab.done(Evaluation, evaluation_id)
    lab.api("DELETE", f"/datasets/{dataset_id}", None, 204)
    of_dataset = select(Evaluation.id).where(Evaluation.dataset_id == dataset_id)
    require(lab.one(of_dataset) is None, "evaluations are left")
    files = [*lab.digests(f"evaluations/{evaluation_id}"), *lab.digests(f"sheets/{dataset_id}")]
    require(not files, f"files are left: {files}")
    return "its evaluation and all files were deleted with it"
