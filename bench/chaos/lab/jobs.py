"""How each kind of job about scans is requested, as often as needed, and what it has produced."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import delete, select

from bench.chaos.lab.tools import Lab, until
from tests.worker.reports.readers import text_of
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    Channel,
    Heatmap,
    Notification,
    Prediction,
    Preview,
    ReceivedScan,
    Replay,
    Report,
    ResultDelivery,
    Scan,
    ShadowAnswer,
    new_id,
    new_preview,
)
from webapp.routing import study_key

PICTURE = 7
"""The number of the phantom that is analyzed with and without a kill."""
TIMES = re.compile(r"\d{4}-\d{2}-\d{2}(?: \d{2}:\d{2}(?::\d{2})?)?")
OF_PREDICTIONS = (
    "model_version_id",
    "probability",
    "threshold",
    "positive",
    "uncertain",
    "slices",
    "first_slices",
    "types",
    "warnings",
    "outlined_slices",
    "areas_mm2",
)
SLOW_S = 1.0
"""How long receivers take for each message or object, so that workers are killed while they
send.
"""


def request_scan(lab: Lab) -> str:
    """Submit an image, always the same."""
    return lab.submit_picture(PICTURE)


def scan_result(lab: Lab, scan_id: str) -> Any:
    """Return its predictions and images."""
    return {
        "predictions": lab.columns(Prediction, OF_PREDICTIONS, Prediction.scan_id == scan_id),
        "state": lab.columns(Scan, ("verdict_state", "slice_count"), Scan.id == scan_id),
        **{
            kind: lab.digests(f"{kind}/{scan_id}")
            for kind in ("originals", "images", "thumbnails", "outlines", "volumes")
        },
    }


def request_heatmap(lab: Lab) -> str:
    """Delete the heat map of a scan, and request it again."""
    scan_id = lab.scan()
    prediction = select(Prediction.id).where(Prediction.scan_id == scan_id).scalar_subquery()
    of_scan = Heatmap.prediction_id == prediction
    with lab.changing():
        db.session.execute(delete(Heatmap).where(of_scan))
    lab.api("POST", f"/scans/{scan_id}/heatmap", None, 202)
    return str(lab.one(select(Heatmap.id).where(of_scan)))


def heatmap_result(lab: Lab, heatmap_id: str) -> Any:
    """Return its images."""
    return {"slices": lab.columns(Heatmap, ("slices",), Heatmap.id == heatmap_id)} | {
        "files": lab.digests(f"heatmaps/{heatmap_id}")
    }


def request_report(lab: Lab) -> str:
    """Request the report of a scan as PDF, which replaces the previous one."""
    scan_id = lab.scan()
    lab.api("POST", f"/scans/{scan_id}/reports/pdf", {}, 202)
    return str(lab.one(select(Report.id).where(Report.scan_id == scan_id)))


def report_result(lab: Lab, report_id: str) -> Any:
    """Return its text without times."""
    names = sorted(lab.digests(f"reports/{report_id}"))
    page = text_of((lab.stack.volume / "reports" / f"{report_id}.pdf").read_bytes())
    return {"files": names, "page": TIMES.sub("", page)}


def request_replay(lab: Lab) -> str:
    """Request the prediction of a scan to be computed again."""
    return str(lab.api("POST", f"/scans/{lab.scan()}/reproduce", {}, 202)["id"])


def replay_result(lab: Lab, replay_id: str) -> Any:
    """Return whether it is the same."""
    return lab.columns(Replay, ("id", "is_same", "result"), Replay.scan_id == lab.scan())


def request_shadow_answer(lab: Lab) -> str:
    """Submit an image, which the shadow analyzes, too."""
    its = ShadowAnswer.scan_id == lab.submit_picture()
    return str(until(lambda: lab.one(select(ShadowAnswer.id).where(its)), every_s=0.002))


def shadow_result(lab: Lab, answer_id: str) -> Any:
    """Return the candidate's predictions."""
    return lab.columns(ShadowAnswer, ("probability", "threshold", "state"), *same_scan(answer_id))


def live_result(lab: Lab, answer_id: str) -> Any:
    """Return the live version's predictions, with which a copy of it must agree."""
    columns = ("live_probability", "live_threshold", "live_state")
    return [
        {name.removeprefix("live_"): value for name, value in row.items()}
        for row in lab.columns(ShadowAnswer, columns, ShadowAnswer.id == answer_id)
    ]


def same_scan(answer_id: str) -> tuple[Any]:
    """Return the condition of all answers of a shadow to the scan of this one."""
    scan = select(ShadowAnswer.scan_id).where(ShadowAnswer.id == answer_id).scalar_subquery()
    return (ShadowAnswer.scan_id == scan,)


def request_preview(lab: Lab) -> str:
    """Delete the preview of an image of a data set, and request it again."""
    what = {"dataset": lab.dataset(), "image": 0}
    with lab.changing():
        db.session.execute(delete(Preview).where(Preview.dataset_id == what["dataset"]))
        preview_id = new_preview(what, {"kind": "picture", "level": 40, "width": 80}).id
    with lab.stack.app.app_context():
        nudge(PREDICT_SCANS)
    return preview_id


def preview_result(lab: Lab, preview_id: str) -> Any:
    """Return its images."""
    rows = lab.columns(Preview, ("result",), Preview.dataset_id == lab.dataset())
    return {"rows": rows, "files": lab.digests(f"previews/{preview_id}")}


def request_notification(lab: Lab) -> str:
    """Queue a test message to a webhook, which takes a while to respond."""
    lab.stack.neighbors.webhook.hangs_s = SLOW_S
    notification_id = new_id()
    user_id = lab.user_id()
    with lab.changing():
        message = Notification(id=notification_id, user_id=user_id, channel=Channel.WEBHOOK)
        db.session.add(message)
    return notification_id


def notification_result(lab: Lab, notification_id: str) -> Any:
    """Return whether it arrived, and what else arrived that was not sent."""
    arrived = set(lab.stack.neighbors.webhook.arrivals)
    sent = {row["id"] for row in lab.columns(Notification, ("id",))}
    return {"arrived": notification_id in arrived, "not sent": sorted(arrived - sent)}


def expected_notification(_: Lab, __: str) -> Any:
    """A repeated message has the same delivery id, by which its receiver recognizes it."""
    return {"arrived": True, "not sent": []}


def request_delivery(lab: Lab) -> str:
    """Send a study by DICOM, whose result goes to an archive that is slow."""
    neighbors = lab.stack.neighbors
    neighbors.archive.mode, neighbors.archive.hangs_s = "slow", SLOW_S
    neighbors.scanner.submit(lab.rng)
    user_id, study = lab.user_id(), neighbors.scanner.studies[-1]
    with lab.stack.app.app_context():
        known_as = study_key(user_id, study)
    received = select(ReceivedScan.scan_id).where(ReceivedScan.study_hash == known_as)
    scan_id = until(lambda: lab.one(received))
    its = select(ResultDelivery.id).where(ResultDelivery.scan_id == scan_id)
    return str(until(lambda: lab.one(its)))


def delivery_result(lab: Lab, delivery_id: str) -> Any:
    """Return how many objects of the newest study the archive has; it counts repeated ones once."""
    archive, study = lab.stack.neighbors.archive, lab.stack.neighbors.scanner.studies[-1]
    archive.mode = ""
    return sum(its == study for its in archive.stored.values())


def expected_delivery(lab: Lab, delivery_id: str) -> Any:
    """Return how many objects were sent, according to the row."""
    (row,) = lab.columns(ResultDelivery, ("sent",), ResultDelivery.id == delivery_id)
    return len(str(row["sent"]).split(", "))
