"""How each kind of job about data sets and versions is requested, as often as needed, and what it
has produced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, select

from bench.chaos.lab.tools import PATIENTS, Lab, require, sentence_of
from ml.paper.cells import plan
from webapp.extensions import db
from webapp.models import (
    AnalysisKind,
    Comparison,
    Dataset,
    DatasetAnalysis,
    DatasetImage,
    DatasetPair,
    Evaluation,
    Finding,
    ModelVersion,
    Opinion,
    PaperExperiment,
    Scan,
    Shadow,
    Share,
    SiteFigures,
    TrainingRun,
    dataset_scan,
)

CONFIRMED = 6
FOLDS = 2
FASTEST = "autoencoder"


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
