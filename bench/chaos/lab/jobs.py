"""How each kind of job is requested, as often as needed, and what it has produced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, select

from bench.chaos.lab.tools import PATIENTS, Lab, require, sentence_of, until
from ml.paper.cells import plan
from tests.worker.reports.readers import text_of
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    AnalysisKind,
    Channel,
    Comparison,
    Dataset,
    DatasetAnalysis,
    DatasetImage,
    DatasetPair,
    Evaluation,
    Finding,
    Heatmap,
    ModelVersion,
    Notification,
    Opinion,
    PaperExperiment,
    Prediction,
    Preview,
    ReceivedScan,
    Replay,
    Report,
    ResultDelivery,
    Scan,
    Shadow,
    ShadowAnswer,
    Share,
    SiteFigures,
    TrainingRun,
    dataset_scan,
    new_id,
    new_preview,
)
from webapp.routing import study_key

PICTURE = 7
"""The number of the phantom that is analyzed with and without a kill."""
CONFIRMED = 6
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
FOLDS = 2
FASTEST = "autoencoder"


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


def request_confirmed(lab: Lab) -> str:
    """Request a data set of confirmed scans."""
    confirm_scans(lab)
    lab.delete_dataset("confirmed")
    return str(lab.api("POST", "/datasets/confirmed", {"name": "confirmed"}, 202)["id"])


def confirm_scans(lab: Lab) -> None:
    """Share scans with the reviewers and confirm them, unless that was done before."""
    if lab.one(select(Opinion.id).limit(1)):
        return
    scan_ids = [lab.submit_picture() for _ in range(CONFIRMED)]
    for scan_id in scan_ids:
        lab.done(Scan, scan_id)
    user_id = lab.user_id()
    with lab.changing():
        for number, scan_id in enumerate(scan_ids):
            finding = Finding.ABSENT if number % 2 else Finding.PRESENT
            db.session.add(Share(scan_id=scan_id))
            db.session.add(Opinion(scan_id=scan_id, author_id=user_id, finding=finding))


def request_corrected(lab: Lab) -> str:
    """Correct the label of an image of a data set, and request its next version."""
    images = f"/datasets/{lab.dataset()}/images/0"
    label = lab.api("GET", images, None, 200)["label"]
    other = "negative" if label == "positive" else "positive"
    lab.api("POST", f"{images}/label", {"label": other}, 200)
    lab.delete_dataset("corrected")
    body = {"name": "corrected"}
    return str(lab.api("POST", f"/datasets/{lab.dataset()}/corrections", body, 202)["id"])


def dataset_result(lab: Lab, dataset_id: str) -> Any:
    """Return everything known about a data set."""
    names = ("fingerprint", "exploration", "corrections")
    (row,) = lab.columns(Dataset, names, Dataset.id == dataset_id)
    images = [column.key for column in DatasetImage.__mapper__.column_attrs]
    images.remove("dataset_id")
    its = DatasetAnalysis.dataset_id == dataset_id
    return {
        **row,
        "images": lab.columns(DatasetImage, images, DatasetImage.dataset_id == dataset_id),
        "pairs": lab.columns(
            DatasetPair, ("number", "other"), DatasetPair.dataset_id == dataset_id
        ),
        "scans": lab.columns(dataset_scan.c, ("scan_id",), dataset_scan.c.dataset_id == dataset_id),
        "indexes": lab.columns(
            DatasetAnalysis, ("kind", "status"), its, DatasetAnalysis.kind == AnalysisKind.IMAGES
        ),
        **{kind: lab.digests(f"{kind}/{dataset_id}") for kind in ("sheets", "tiles", "samples")},
    }


def request_index(lab: Lab) -> str:
    """Delete the index of the images of a data set, and request it again."""
    dataset_id = lab.dataset()
    with lab.changing():
        for table in (DatasetPair, DatasetImage):
            db.session.execute(delete(table).where(table.dataset_id == dataset_id))
    for kind, suffix in (("tiles", "pack"), ("samples", "npz")):
        (lab.stack.volume / kind / f"{dataset_id}.{suffix}").unlink()
    return ask_again(lab, AnalysisKind.IMAGES, "images", None)


def index_result(lab: Lab, _: str) -> Any:
    """Return everything known about the data set."""
    return dataset_result(lab, lab.dataset())


def request_split(lab: Lab) -> str:
    """Delete the preview of a split, and request it again."""
    return ask_again(lab, AnalysisKind.SPLIT, "splits", {"folds": FOLDS, "seed": 0})


def request_sources(lab: Lab) -> str:
    """Delete the comparison of two data sets, and request it again."""
    other = {"other_id": lab.dataset(1)}
    return ask_again(lab, AnalysisKind.SOURCES, "differences", other)


def ask_again(lab: Lab, kind: AnalysisKind, path: str, body: Any) -> str:
    """Delete the analysis of this kind of a data set, and request it."""
    with lab.changing():
        db.session.execute(delete(DatasetAnalysis).where(*analyses(lab, kind)))
    return str(lab.api("POST", f"/datasets/{lab.dataset()}/{path}", body, 202)["id"])


def analysis_result(lab: Lab, analysis_id: str) -> Any:
    """Return its result, and those of others of its kind."""
    kind = lab.one(select(DatasetAnalysis.kind).where(DatasetAnalysis.id == analysis_id))
    return lab.columns(DatasetAnalysis, ("result",), *analyses(lab, kind))


def analyses(lab: Lab, kind: AnalysisKind) -> Sequence[ColumnElement[bool]]:
    """Return the conditions of the analyses of this kind of a data set; a comparison belongs to
    either of the two.
    """
    of_kind = DatasetAnalysis.kind == kind
    if kind == AnalysisKind.SOURCES:
        return [of_kind]
    return [of_kind, DatasetAnalysis.dataset_id == lab.dataset()]


def request_figures(lab: Lab) -> str:
    """Request the site figures."""
    confirm_scans(lab)
    lab.api("POST", "/site-figures", None, 202)
    newest = select(SiteFigures.id).order_by(SiteFigures.created_at.desc()).limit(1)
    return str(lab.one(newest))


def figures_result(lab: Lab, figures_id: str) -> Any:
    """Return them."""
    return lab.columns(SiteFigures, ("figures",), SiteFigures.id == figures_id)


def copy_of_live(lab: Lab) -> str:
    """Return the id of the shadow's version, a copy of the live one."""
    return str(lab.one(select(Shadow.version_id).where(Shadow.reads == "slice")))


def request_comparison(lab: Lab) -> str:
    """Delete the comparison of a version with the live one, and request it again."""
    version_id = copy_of_live(lab)
    with lab.changing():
        db.session.execute(delete(Comparison).where(Comparison.version_id == version_id))
    return str(lab.api("POST", "/comparisons", {"version_id": version_id}, 202)["id"])


def comparison_result(lab: Lab, _: str) -> Any:
    """Return all comparisons of the two versions."""
    rows = lab.columns(Comparison, ("results",), Comparison.version_id == copy_of_live(lab))
    require(len(rows) == 1, f"{len(rows)} comparisons")
    return rows


def request_evaluation(lab: Lab) -> str:
    """Delete the evaluation of the live version on a data set, and request it again."""
    body = {"version_id": lab.live("slice")[0], "dataset_id": lab.dataset()}
    with lab.changing():
        db.session.execute(delete(Evaluation).filter_by(**body))
    return str(lab.api("POST", "/evaluations", body, 202)["id"])


def refused_deletion(lab: Lab) -> str:
    """Request the deletion of the data set, which is refused while the evaluation runs."""
    problem = lab.api("DELETE", f"/datasets/{lab.dataset()}", None, 409)
    return f"; the deletion was refused: “{sentence_of(problem)}”"


def evaluation_result(lab: Lab, evaluation_id: str) -> Any:
    """Return its figures and files, without its duration."""
    its = Evaluation.dataset_id == lab.dataset(), Evaluation.version_id == lab.live("slice")[0]
    rows = lab.columns(Evaluation, ("result", "curves", "mistakes"), *its)
    for row in rows:
        row["result"].pop("seconds")
    files = lab.digests(f"evaluations/{evaluation_id}/")
    files["metrics.json"] = ""  # It has the duration.
    return {"rows": rows, "files": files}


def request_calibration(lab: Lab) -> str:
    """Request a calibration of the live version on a data set."""
    body = {"version_id": lab.live("slice")[0], "dataset_id": lab.dataset()}
    return str(lab.api("POST", "/calibrations", body, 202)["id"])


def calibration_result(lab: Lab, run_id: str) -> Any:
    """Return the version that it made, and its files."""
    names = ("id", "reads", "canary", "slice_threshold", "scan_threshold", "blocked_because")
    versions = lab.columns(ModelVersion, names, ModelVersion.run_id == run_id)
    files = [lab.digests(f"models/{version.pop('id')}/") for version in versions]
    for its in files:
        its["card.json"] = ""  # It has the time of the calibration.
    return {
        "versions": versions,
        "files": files,
        "checkpoints": lab.digests(f"checkpoints/{run_id}"),
        "runs": lab.columns(TrainingRun, ("status",), TrainingRun.id == run_id),
    }


def request_experiment(lab: Lab) -> str:
    """Launch the paper's experiment with its fastest architecture."""
    body = {"dataset_id": lab.dataset(), "architectures": [FASTEST]}
    return str(lab.api("POST", "/paper-experiments", body, 202)["id"])


def experiment_result(lab: Lab, experiment_id: str) -> Any:
    """Return the names of the combinations that have results, and its leftover files."""
    (row,) = lab.columns(PaperExperiment, ("results",), PaperExperiment.id == experiment_id)
    return {
        "cells": sorted(cell["name"] for cell in row["results"]["cells"]),
        "checkpoints": lab.digests(f"papers/{experiment_id}"),
    }


def expected_experiment(_: Lab, __: str) -> Any:
    """Each combination has one result; their values are not compared, because another experiment
    takes minutes.
    """
    planned = plan(PATIENTS, [FASTEST])
    return {"cells": sorted(cell.name for cell in planned), "checkpoints": {}}
