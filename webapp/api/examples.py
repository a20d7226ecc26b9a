"""An example of each schema, for the OpenAPI document; a test validates them against the
schemas.
"""

from __future__ import annotations

from typing import Any

HOST = "https://scans.example.org/api/v1"
SCAN_ID = "8a1f0c5d2b7e4a6f9c3d1e0b5a7f2c48"
STUDY_ID = "5d7c9e1f3a5b4c6d8e0f2a4b6c8d0e1f"
VERSION_ID = "3b9d5f1a7c2e4b6d8f0a1c3e5b7d9f20"
OTHER_ID = "6c2e8a4f0b1d4e7a9c5b3d1f8e6a4c20"
DATASET_ID = "1f3e5d7c9b0a4f2e8d6c4b2a0f1e3d5c"
RUN_ID = "9e7d5c3b1a0f4d2e8c6b4a2f0e1d3c5b"
EVALUATION_ID = "4a6b8c0d2e1f4a3b9c5d7e9f1a2b3c4d"
USER_ID = "7f5e3d1c9b8a4e6d8c0b2a4f6e8d1c3b"
SHADOW_ID = "2b4d6f8a0c1e4b3d9a5c7e9f1b3d5f7a"
SAMPLE_ID = "0c2e4a6b8d1f4c3e9b5d7f9a1c3e5b7d"
CURSOR = "WyI4YTFmMGM1ZDJiN2U0YTZmIl0.Qm9yZGVy"
NOON = "2026-11-29T12:00:00+00:00"
LATER = "2026-11-29T12:00:07+00:00"
PROBLEMS = {
    "202": ("Accepted", "The heat map is not ready yet."),
    "400": ("Bad Request", "The body is not valid JSON."),
    "401": ("Unauthorized", "Unknown API token; it may have been revoked."),
    "403": (
        "Forbidden",
        "This needs a token with the scope “admin”; this one has: read, submit. Create another one"
        " on the account page.",
    ),
    "404": ("Not Found", "Scan not found."),
    "409": ("Conflict", "This scan has already finished."),
    "413": (
        "Request Entity Too Large",
        "The upload is larger than 512 MB, the maximum upload size.",
    ),
    "415": (
        "Unsupported Media Type",
        "Send the files as multipart/form-data, in the field “file”.",
    ),
    "422": ("Unprocessable Entity", "limit: Must be greater than or equal to 1."),
    "429": ("Too Many Requests", "Too many attempts. Please wait a minute and try again."),
    "503": (
        "Service Unavailable",
        "The database is busy. Please try again in a few seconds.",
    ),
    "507": ("Insufficient Storage", "The server's disk is full. Please try again later."),
}
"""Title and sentence of each response status."""


def page(path: str, item: Any, **more: Any) -> dict[str, Any]:
    """Return a page of a list with this item."""
    return {"items": [item], "next": f"{HOST}{path}?cursor={CURSOR}", **more}


def estimate(value: float, low: float, high: float, n: int) -> dict[str, Any]:
    """Return a figure with its interval."""
    return {"value": value, "low": low, "high": high, "n": n, "reason": None}


_job = {"id": SCAN_ID, "status": "queued", "url": f"{HOST}/scans/{SCAN_ID}"}
_model_version = {"id": VERSION_ID, "architecture": "googlenet_unet_series"}
_slice = {
    "index": 0,
    "probability": 0.93,
    "types": {"subarachnoid": 0.61, "intraparenchymal": 0.22},
    "area_mm2": 184.5,
    "outline_url": f"{HOST}/scans/{SCAN_ID}/slices/0/outline.png",
}
_result = {
    "verdict": "Brain Hemorrhage Detected.",
    "positive": True,
    "uncertain": False,
    "state": "suspected",
    "probability": 0.93,
    "threshold": 0.41,
    "warnings": [],
    "model_version": _model_version,
    "types": {"subarachnoid": 0.61, "intraparenchymal": 0.22},
    "slices": [_slice],
    "first_slices": [0],
    "heatmap_slices": [],
    "heatmap_url": None,
    "volume_ml": 0.9,
    "no_volume_because": None,
    "outline_url": f"{HOST}/scans/{SCAN_ID}/outline.nii.gz",
}
_scan = {
    "id": SCAN_ID,
    "study_id": STUDY_ID,
    "status": "done",
    "progress": 1.0,
    "error": None,
    "title": "Monday, second reading",
    "submitter": "ann",
    "kind": "dicom",
    "slice_count": 1,
    "stat": False,
    "notes": [],
    "created_at": NOON,
    "finished_at": LATER,
    "original_removed_at": None,
    "score_anyway_url": None,
    "earlier_attempts": [],
    "earlier_answers": [],
    "result": _result,
}
_opinion = {
    "id": OTHER_ID,
    "author": "bob",
    "slice": None,
    "finding": "present",
    "types": ["subarachnoid"],
    "comment": "Thin, along the tentorium.",
    "region": None,
    "agrees": True,
    "model_version_id": VERSION_ID,
    "model_positive": True,
    "model_probability": 0.93,
    "sampling": None,
    "created_at": NOON,
    "updated_at": NOON,
}
_share = {"id": OTHER_ID, "username": "bob", "created_at": NOON}
_live = {
    "id": VERSION_ID,
    "card_id": "5e2b7f90c1d4",
    "architecture": "googlenet_unet_series",
    "operating_point": "balanced",
    "slice_threshold": 0.38,
    "scan_threshold": 0.41,
    "since": NOON,
    "until": None,
}
_sensitivity = estimate(0.91, 0.84, 0.96, 118)
_figures = {
    "scans": 240,
    "with_hemorrhage": 118,
    "represented": 1630.0,
    "metrics": {"sensitivity": _sensitivity},
    "bins": [{"low": 0.8, "high": 1.0, "scans": 96, "predicted": 0.92, "observed": _sensitivity}],
}


def work(row_id: str, status: str = "queued") -> dict[str, Any]:
    """Return a job with that status."""
    is_done = status == "done"
    return {
        "id": row_id,
        "status": status,
        "progress": 1.0 if is_done else 0.0,
        "stage": None,
        "error": None,
        "created_at": NOON,
        "started_at": NOON if is_done else None,
        "finished_at": LATER if is_done else None,
    }


_registered = {
    "id": VERSION_ID,
    "name": "GoogLeNet U-Net for series · v3",
    "card_id": "5e2b7f90c1d4",
    "architecture": "googlenet_unet_series",
    "number": 3,
    "reads": "series",
    "run_id": RUN_ID,
    "created_at": NOON,
    "is_live": False,
    "blocked_because": None,
    "metrics": {"auroc": estimate(0.912, 0.894, 0.928, 3628)},
}
_point = {
    "name": "balanced",
    "scan_threshold": 0.41,
    "slice_threshold": 0.38,
    "by_scan": "Of 100 scans, 10 of them with hemorrhage: finds 9, misses 1, flags 6 of the 90"
    " without.",
    "by_slice": "",
}
_promotion = {
    "id": 12,
    "version_id": VERSION_ID,
    "name": "GoogLeNet U-Net for series · v3",
    "reads": "series",
    "at": NOON,
    "until": None,
    "by": "ann",
    "reason": "Finds more thin hemorrhages on our scanner.",
    "operating_point": "balanced: series from 0.41, single slices from 0.38",
    "evidence": {"verdict": "better", "typed": None},
}
_mistake = {
    "filename": "site_b/0042.png",
    "patient": "17",
    "label": 1,
    "probability": 0.02,
    "heat": True,
}
_compared = {
    "source": "our scanner, 2026",
    "verdict": "better",
    "sentence": "Better: AUROC by patient +0.021 (+0.004 to +0.043) on 75 patients, 41 with"
    " hemorrhage.",
}
_evaluation = {
    **work(EVALUATION_ID, "done"),
    "version_id": VERSION_ID,
    "dataset_id": DATASET_ID,
    "dataset": "our scanner, 2026",
    "result": {"scans": 75, "patient": {"auroc": estimate(0.954, 0.903, 0.991, 75)}},
}
_comparison = {
    **work(EVALUATION_ID, "done"),
    "version_id": VERSION_ID,
    "other_id": OTHER_ID,
    "results": [
        {
            "source": "our scanner, 2026",
            "patient": {"n": 75, "auroc": estimate(0.021, 0.004, 0.043, 75)},
        }
    ],
}
_setting = {
    "name": "epochs",
    "kind": "int",
    "default": 30,
    "help": "How often the training goes through all images.",
    "low": 1.0,
    "high": 500.0,
    "choices": [],
}
_description = {"name": "Baseline", "tags": ["2026", "baseline"], "notes": "Five folds."}
_run = {
    **work(RUN_ID),
    **_description,
    "architecture": "googlenet_unet_series",
    "is_calibration": False,
    "seed": 0,
    "initial_weights": "starter-series",
    "launched_by": "ann",
    "datasets": [{"id": DATASET_ID, "name": "our scanner, 2026"}],
    "eta_s": None,
    "current_metrics": {},
    "version_id": None,
}
_experiment = {
    **work(RUN_ID, "running"),
    "dataset_id": DATASET_ID,
    "architectures": ["alexnet_svm", "cnn_lstm"],
    "initial_weights": "random",
    "launched_by": "ann",
    "eta_s": 1200.0,
    "cells": 16,
    "cells_done": 4,
}
_dataset = {
    **work(DATASET_ID, "done"),
    "name": "our scanner, 2026",
    "fingerprint": "0f" * 32,
    "made_from": None,
}
_site_figures = {
    "computed_at": NOON,
    "versions": [
        {
            "version_id": VERSION_ID,
            "card_id": "5e2b7f90c1d4",
            "architecture": "googlenet_unet_series",
            "reads": "series",
            "all": _figures,
            "months": [{"month": "2026-11", **_figures}],
            "notes": [],
        }
    ],
}
_person = {
    "id": USER_ID,
    "username": "bob",
    "name": "Bob Example",
    "email": "bob@example.org",
    "role": "reviewer",
    "created_at": NOON,
    "disabled_at": None,
    "has_second_factor": True,
}
_event = {
    "id": 4711,
    "at": NOON,
    "act": "version promoted",
    "actor_id": USER_ID,
    "actor": "ann",
    "object_id": VERSION_ID,
    "address": "192.0.2.7",
    "detail": "balanced: series from 0.41, single slices from 0.38",
}

_image = {
    "number": 41,
    "label": "positive",
    "types": ["subdural"],
    "patient": 12,
    "group": 12,
    "source": "site_b",
    "width": 512,
    "height": 512,
    "has_outline": False,
    "has_thumbnail": True,
    "problems": [{"kind": "contradiction", "sentence": "A near-duplicate has another label."}],
}
_correction = {
    "number": 41,
    "was": "positive",
    "label": "negative",
    "reason": "Calcified pineal gland.",
    "by": "reader",
    "at": NOON,
}
_choice = {"channel": "email", "wanted": "suspicious"}
_message = {
    **work(SHADOW_ID, "done"),
    "channel": "email",
    "scan_id": SCAN_ID,
    "tries": 1,
    "retry_at": None,
}
_delivery = {
    **work(EVALUATION_ID),
    "error": "The destination’s certificate has expired.",
    "scan_id": SCAN_ID,
    "destination": "pacs",
    "tries": 1,
    "retry_at": LATER,
    "sent": [],
}
_shadow = {
    "id": SHADOW_ID,
    "version_id": OTHER_ID,
    "version": "googlenet_unet_series 2",
    "against_id": VERSION_ID,
    "against": "googlenet_unet_series 1",
    "reads": "series",
    "started_by": "boss",
    "started_at": NOON,
    "ended_at": None,
    "ended_because": None,
    "skipped": 0,
}
_replay: dict[str, Any] = {
    "id": SAMPLE_ID,
    "scan_id": SCAN_ID,
    "earlier_answer_id": None,
    "outcome": "same",
    "headline": "Reproduced exactly with googlenet_unet_series 1.",
    "details": [],
    "not_compared": [],
    "queued_at": NOON,
    "finished_at": LATER,
}
_sample = {
    "id": SAMPLE_ID,
    "created_at": NOON,
    "requested_by": "boss",
    "same": 98,
    "same_in_part": 3,
    "different": 0,
    "failed": 0,
    "canceled": 0,
    "waiting": 2,
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "Token": {
        "name": "research script",
        "username": "ann",
        "role": "user",
        "scopes": ["read", "submit"],
        "created_at": NOON,
        "expires_at": "2027-02-27T12:00:00+00:00",
    },
    "Job": _job,
    "Submission": {**_job, "scans": [_job]},
    "Scan": _scan,
    "ScansPage": page("/scans", _scan, total=61),
    "Change": {"action": "stat", "ids": [SCAN_ID, OTHER_ID]},
    "Changed": {
        "action": "stat",
        "changed": [SCAN_ID],
        "unchanged": [],
        "unchanged_because": None,
        "not_found": [OTHER_ID],
    },
    "Join": {"ids": [SCAN_ID, OTHER_ID], "title": "Film of Monday"},
    "Report": {"kind": "pdf", "status": "queued", "url": f"{HOST}/scans/{SCAN_ID}/reports/pdf"},
    "Opinion": _opinion,
    "NewOpinion": {
        "finding": "present",
        "slice": None,
        "types": ["subarachnoid"],
        "comment": "Thin, along the tentorium.",
        "region": None,
        "from_queue": False,
    },
    "Opinions": page(f"/scans/{SCAN_ID}/opinions", _opinion, confirmed="present", disputed=False),
    "NewShare": {"username": "bob"},
    "Share": _share,
    "Shares": page(f"/scans/{SCAN_ID}/shares", _share),
    "ReviewQueue": page(
        "/review",
        {
            "scan_id": SCAN_ID,
            "url": f"{HOST}/scans/{SCAN_ID}",
            "reason": "uncertain",
            "submitter": "ann",
            "state": "inconclusive",
            "probability": 0.43,
        },
        counts={"uncertain": 3, "disagreement": 1, "random share": 12},
        random_share=0.1,
    ),
    "LiveModels": {"at": NOON, "slice": None, "series": _live},
    "SiteFigures": _site_figures,
    "Site": {
        "confirmed_present": 118,
        "confirmed_absent": 122,
        "disputed": 4,
        "disputed_scans": [{"scan_id": SCAN_ID, "submitter": "ann", "present": 1, "absent": 1}],
        "newest_request": work(OTHER_ID, "done"),
        "figures": _site_figures,
        "opinions_since": 3,
    },
    "SiteFiguresRequest": work(OTHER_ID),
    "Choice": _choice,
    "Wanted": {"wanted": "suspicious"},
    "ChoicesPage": page("/notifications", _choice),
    "MessagesPage": page("/notifications/messages", _message),
    "QueuedMessages": {"queued": 1},
    "RegistryPage": page("/models", _registered),
    "Version": {
        **_registered,
        "operating_point": _point,
        "card": {"id": "5e2b7f90c1d4"},
        "mistakes": [_mistake],
    },
    "Checklist": {
        "is_live": False,
        "live_id": OTHER_ID,
        "seen": "11",
        "verdict": "better",
        "summary": "Better than the live version on the same images.",
        "confirmation": None,
        "checks": [
            {
                "name": "Evaluated by patient",
                "passed": True,
                "sentence": "AUROC by patient 0.954, n = 75.",
            }
        ],
        "compared": [_compared],
        "operating_points": [_point],
    },
    "Promote": {
        "reason": "Finds more thin hemorrhages on our scanner.",
        "seen": "11",
        "confirmation": "",
        "operating_point": "balanced",
        "scan_threshold": None,
        "slice_threshold": None,
    },
    "Promotion": _promotion,
    "Effect": {
        **_promotion,
        "before": {**_promotion, "id": 11, "version_id": OTHER_ID, "until": NOON},
        "is_point_only": False,
        "scans": 240,
        "is_cut": False,
        "known": 200,
        "missing": 40,
        "changed": 3,
        "suspected_with_only": 2,
        "suspected_without_only": 1,
        "shadow_id": SHADOW_ID,
        "compared": [_compared],
    },
    "ChangedResultsPage": page(
        "/promotions/12/changed",
        {
            "scan_id": SCAN_ID,
            "state": "suspected",
            "probability": 0.72,
            "without_state": "not found",
            "without_probability": 0.31,
            "answered_at": LATER,
        },
    ),
    "PromotionsPage": page("/promotions", _promotion),
    "Threshold": {
        "threshold": 0.41,
        "level": "patient",
        "prevalence": 10.0,
        "meaning": _point["by_scan"],
        "figures": {
            "sensitivity": 0.9,
            "specificity": 0.94,
            "positive": 118,
            "negative": 122,
            "ppv": 0.625,
            "npv": 0.988,
            "alarms": 14.4,
            "true_alarms": 9.0,
            "false_alarms": 5.4,
            "missed": 1.0,
        },
        "both": [
            {
                "source": "our scanner, 2026",
                "whose": "own",
                "sensitivity": 0.9,
                "specificity": 0.94,
                "meaning": "Of 100 patients, 10 of them with hemorrhage: finds 9, misses 1.",
            }
        ],
    },
    "Evaluate": {"version_id": VERSION_ID, "dataset_id": DATASET_ID},
    "EvaluationSummary": _evaluation,
    "Evaluation": {**_evaluation, "curves": {}, "mistakes": [_mistake]},
    "EvaluationsPage": page("/evaluations", _evaluation),
    "Compare": {"version_id": VERSION_ID},
    "Comparison": _comparison,
    "ComparisonsPage": page("/comparisons", _comparison),
    "ArchitecturesPage": page(
        "/architectures",
        {
            "name": "googlenet_unet_series",
            "title": "GoogLeNet U-Net for series",
            "summary": "A U-Net on GoogLeNet’s inception modules; reads three slices.",
            "reads": "series",
            "settings": [_setting],
            "initial_weights": ["starter-series", "random"],
        },
    ),
    "Describe": _description,
    "Launch": {
        **_description,
        "architecture": "googlenet_unet_series",
        "dataset_ids": [DATASET_ID],
        "settings": {"epochs": 20},
        "initial_weights": "starter-series",
        "seed": 0,
        "accept_overruled": False,
    },
    "RunSummary": _run,
    "Run": {
        **_run,
        "settings": {"epochs": 20},
        "curves": [
            {"metric": "loss", "step": 9, "value": 0.69, "stage": "fold 1 of 5", "epoch": 1},
            {
                "metric": "validation_loss",
                "step": 9,
                "value": 0.71,
                "stage": "fold 1 of 5",
                "epoch": 1,
            },
        ],
        "earlier_attempts": [],
    },
    "RunsPage": page("/runs", _run),
    "Calibrate": {"version_id": VERSION_ID, "dataset_id": DATASET_ID},
    "DatasetSummary": _dataset,
    "Dataset": {
        **_dataset,
        "exploration": {"images": 3628, "positive": 1411, "negative": 2217},
    },
    "DatasetsPage": page("/datasets", _dataset),
    "ConfirmedDataset": {
        "name": "our scanner, 2026",
        "since": "2026-01-01",
        "until": None,
        "kind": "series",
        "opinions": 2,
    },
    "AccuracyFiguresPage": page(
        f"/datasets/{DATASET_ID}/accuracy",
        {
            "model": "AlexNet SVM · v1",
            "source": "out of fold",
            "protocol": "honest",
            "level": "slice",
            "metric": "accuracy",
            "value": 0.9,
            "low": 0.85,
            "high": 0.94,
            "n": 200,
            "version_id": VERSION_ID,
            "evaluation_id": None,
        },
    ),
    "LaunchPaper": {
        "dataset_id": DATASET_ID,
        "architectures": ["alexnet_svm", "cnn_lstm"],
        "initial_weights": "random",
    },
    "PaperExperimentSummary": _experiment,
    "PaperExperiment": {**_experiment, "results": {"cells": []}},
    "PaperExperimentsPage": page("/paper-experiments", _experiment),
    "DatasetImagesPage": {**page(f"/datasets/{DATASET_ID}/images", _image), "unmatched": []},
    "DatasetImage": {
        **_image,
        "name": "site_b/0042.png",
        "bytes": 48211,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "dhash": "e0f0f8fcfcf8f0e0",
        "gray": 0.41,
        "head_share": 0.52,
        "slice": None,
        "place_mm": None,
        "near_duplicates": [{**_image, "number": 57}],
        "correction": _correction,
    },
    "CorrectLabel": {"label": "negative", "reason": "Calcified pineal gland."},
    "CorrectionsPage": page(f"/datasets/{DATASET_ID}/corrections", _correction),
    "ApplyCorrections": {"name": "rsna v2"},
    "SplitQuestion": {"folds": 5, "seed": 0},
    "CompareDatasets": {"other_id": OTHER_ID},
    "DatasetQuestion": {
        **work(EVALUATION_ID, "done"),
        "kind": "split",
        "dataset_id": DATASET_ID,
        "other_id": None,
        "result": {"folds": 5},
    },
    "Delivery": _delivery,
    "DeliveriesPage": page("/deliveries", _delivery),
    "ReceivedStudiesPage": page(
        "/received-studies",
        {
            "id": SAMPLE_ID,
            "sent_by": "CT1",
            "files": 40,
            "scans": 1,
            "sentence": None,
            "closed_at": NOON,
        },
    ),
    "StartShadow": {"version_id": OTHER_ID},
    "ShadowSummary": _shadow,
    "ShadowsPage": page("/shadows", _shadow),
    "Shadow": {
        **_shadow,
        "agreement": {
            "n": 100,
            "same": 96,
            "share": 0.96,
            "low": 0.902,
            "high": 0.984,
            "only_candidate": 3,
            "only_live": 1,
            "states": [{"live": "not found", "candidate": "suspected", "count": 3}],
        },
        "drift": [
            {
                "begins": "2026-11-29",
                "n": 100,
                "live": {"p10": 0.02, "p50": 0.11, "p90": 0.93, "suspected": 0.21},
                "candidate": {"p10": 0.03, "p50": 0.12, "p90": 0.94, "suspected": 0.23},
            }
        ],
        "cost": {
            "answered": 100,
            "failed": 0,
            "waiting": 2,
            "seconds": 61.0,
            "seconds_each": 0.61,
        },
    },
    "DisagreementsPage": page(
        f"/shadows/{SHADOW_ID}/disagreements",
        {
            "scan_id": SCAN_ID,
            "live_state": "not found",
            "live_probability": 0.31,
            "state": "suspected",
            "probability": 0.72,
            "answered_at": LATER,
        },
    ),
    "Reproduce": {"earlier_answer_id": None},
    "Replay": _replay,
    "ReplaysPage": page(f"/scans/{SCAN_ID}/replays", _replay),
    "Draw": {"count": 100},
    "ReplaySample": _sample,
    "ReplaySamplesPage": page("/replays", _sample),
    "Operations": {
        "queues": [
            {
                "what": "Scans",
                "queue": "predict",
                "queued": 3,
                "running": 8,
                "failed": 0,
                "oldest_s": 2.4,
            }
        ],
        "workers": [
            {
                "id": "predict@host",
                "queue": "predict",
                "host": "host",
                "started_at": NOON,
                "seen_at": LATER,
                "silent_s": 1.2,
                "alarm": None,
            }
        ],
        "stuck": [],
    },
    "Person": _person,
    "PeoplePage": page("/users", _person),
    "NewRole": {"role": "reviewer"},
    "EventsPage": page("/audit", _event),
}
"""Examples by the name of a schema in the document."""
FORMS: dict[str, dict[str, Any]] = {
    "submit_scans": {
        "file": ["1.dcm", "2.dcm"],
        "title": "Monday, second reading",
        "stat": "1",
        "together": "0",
        "keep_names": "0",
        "uncut": "0",
    },
    "import_dataset": {"name": "our scanner, 2026", "archive": "labeled.zip"},
}
"""Examples by the name of an operation whose body is multipart/form-data; files by their names."""
