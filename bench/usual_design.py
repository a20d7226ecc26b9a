"""The service that one would commonly write, for `bench.services`: Flask accepts a file, a Celery
task predicts with Keras, and the result stays in Redis. It has no database, accounts, check of the
image, stored images or outlines in millimeters.

Settings come from the environment: USUAL_BROKER, USUAL_FOLDER, USUAL_MODEL and, for its best form,
USUAL_COMPILED=1, which compiles the network by `tf.function` instead of calling `Model.predict`.
"""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory

from celery import Celery
from celery.result import AsyncResult
from flask import Flask, abort, request

from bench.peers import keras_peers

MODEL, FOLDER = Path(os.environ["USUAL_MODEL"]), Path(os.environ["USUAL_FOLDER"])
BROKER = os.environ["USUAL_BROKER"]

celery = Celery("usual", broker=BROKER, backend=BROKER)
celery.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
app = Flask(__name__)


@app.get("/healthz")
def healthz() -> str:
    """Report that the web application responds."""
    return "ok"


@app.post("/scans")
def submit() -> tuple[dict[str, str], int]:
    """Store a file and queue it."""
    file = request.files["file"]
    path = FOLDER / f"{uuid.uuid4().hex}{Path(file.filename or '').suffix}"
    file.save(path)
    return {"id": score.delay(str(path)).id}, 202


@app.get("/scans/<scan_id>")
def status(scan_id: str) -> dict[str, object]:
    """Return whether a file was answered, and the answer."""
    result = AsyncResult(scan_id, app=celery)
    if result.failed():
        abort(500)
    return {"probability": result.result if result.ready() else None}


@celery.task  # type: ignore[untyped-decorator]
def score(name: str) -> float:
    """Return the answer for a slice, or for a series in a ZIP archive, which is deleted."""
    path = Path(name)
    with TemporaryDirectory() as folder:
        paths = [path]
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            paths = sorted(Path(folder).iterdir())
        logit = network()(paths)
    path.unlink()
    return 1 / (1 + exp(-logit))


@cache
def network() -> Callable[[Sequence[Path]], float]:
    """Build the network, once per worker."""
    by_name = keras_peers(MODEL)
    return by_name["keras function" if os.environ.get("USUAL_COMPILED") else "keras"]
