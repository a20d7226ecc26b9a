"""What a version's page and its run's page show of its card."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.webapp.admin.conftest import a_card, add_run, add_version, figure
from webapp.extensions import db, utc_now
from webapp.models import Comparison, JobStatus

CONTROLS = [
    {
        "name": "permuted",
        "auroc": figure(0.512, low=0.47, high=0.55, n=20),
        "lower_99": 0.47,
        "seconds": 34.0,
        "how": "Mean over <20>.",
    },
    {
        "name": "metadata",
        "auroc": figure(0.83),
        "accuracy": figure(0.79),
        "seconds": 2.0,
        "how": "A random forest.",
    },
    {"name": "leaked", "skipped": "There are too <few> images."},
    {
        "name": "random_weights",
        "auroc": figure(None, reason="one class is missing"),
        "accuracy": figure(0.7),
        "seconds": 600.0,
        "how": "x",
    },
]
BAND = {
    "slice": {
        "npv": {"value": 0.99, "n": 80},
        "ppv": {"value": 0.875, "n": 64},
        "uncertain": {"value": 0.28, "n": 200},
    },
    "patient": {
        "npv": {"value": None, "n": 0},
        "ppv": {"value": 0.5, "n": 6},
        "uncertain": {"value": 0.1, "n": 20},
    },
}
HEAT_MAPS = {
    "hottest_beats_random": figure(0.912, low=0.85, high=0.96),
    "hottest_in_or_beside_mask": figure(None, reason="no outlines"),
}


TYPES = {
    "epidural": (
        {"given": True, "slices": 96, "of_slices": 1492, "patients": 12, "of_patients": 49}
        | {
            "slice": {"auroc": figure(0.814)},
            "patient": {
                "auroc": figure(0.736),
                "auroc_among_bleeding": figure(0.49),
                "ece": figure(0.099),
            },
        }
    ),
    "subdural": (
        {"given": False, "slices": 9, "of_slices": 1492, "patients": 2, "of_patients": 49}
        | {
            "scores": [
                {"probability": 0.341, "rank": 2, "of": 49},
                {"probability": None, "rank": None, "of": 49},
            ]
        }
    ),
}


def full_card(**changes: Any) -> dict[str, Any]:
    """A card with everything that a training of today writes."""
    patients = {
        "auroc": figure(0.777, low=0.7, high=0.85, n=20),
        "sensitivity": figure(None, reason="there is no image with hemorrhage"),
    }
    return a_card(
        **{
            "patient_metrics": patients,
            "patient_metrics_by_dataset": {
                "head_ct": patients,
                "ct_<ich>": {"auroc": figure(0.666, n=9), "sensitivity": figure(1.0)},
            },
            "controls": CONTROLS,
            "band": BAND,
            "heat_maps": HEAT_MAPS,
            "types": TYPES,
            "scan_threshold": 0.222,
            "scan_uncertain_low": 0.111,
            "scan_uncertain_high": 0.333,
            "seconds": 7000.0,
            **changes,
        }
    )


def text_of(page: str) -> str:
    """Return a page as a person reads it: no tags, one space between words."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


@pytest.fixture
def pages(app: Flask, admin: FlaskClient) -> Callable[[str], list[str]]:
    """What a tab shows of a version with a full card, on its page and on that of its run."""
    with app.app_context():
        run = add_run(JobStatus.DONE)
        version = add_version("card-one", run_id=run, card=full_card())
    addresses = f"/admin/models/{version}", f"/admin/runs/{run}"
    return lambda tab: [admin.get(f"{address}?show={tab}").text for address in addresses]


def test_tabs_are_links_and_a_name_that_does_not_exist_shows_the_first(
    pages: Callable[[str], list[str]],
) -> None:
    for page in pages("controls"):
        assert re.findall('show=([a-z]+)#tabs" aria-current="page"', page) == ["controls"]
        assert "File metadata only" in page and "Worst mistakes" not in page
    of_version, of_run = pages("<b>")
    assert 'show=promotion#tabs" aria-current="page"' in of_version and "Promote this" in of_version
    assert 'show=run#tabs" aria-current="page"' in of_run and "Configuration" in of_run


def test_types_of_bleeding_stand_with_figures_and_few_patients_one_by_one(
    app: Flask, admin: FlaskClient, pages: Callable[[str], list[str]]
) -> None:
    for page in pages("figures"):
        text = text_of(page)
        assert "Epidural 96 of 1492 12 of 49 0.814 0.736 0.490 0.099" in text
        assert (
            "Subdural not labeled 9 of 1492 2 of 49 Too few patients. Individual probabilities:"
            " 34.1% (rank 2 of 49), no result." in text
        )
    with app.app_context():
        without = add_version("card-two", card=a_card())
    assert "Type of hemorrhage" not in admin.get(f"/admin/models/{without}?show=figures").text


def test_figures_stand_by_slice_and_by_patient_for_each_data_set(
    pages: Callable[[str], list[str]],
) -> None:
    for page in pages("figures"):
        text = text_of(page)
        assert (
            "By slice" in text
            and "By patient" in text
            and "ct_<ich>" in text
            and "ct_<ich>" not in page
        )
        assert "AUROC 0.777 (0.700–0.850) 20 0.777 (0.700–0.850) 20 0.666 9" in text, (
            "all, then each data set"
        )
        assert "there is no image with hemorrhage" in text, "an undefined figure is its reason"


def test_controls_stand_beside_the_runs_own_figures(pages: Callable[[str], list[str]]) -> None:
    for page in pages("controls"):
        text = text_of(page)
        assert "This version 0.951 (0.921–0.978) 90.0 (85.0–94.0) 1.9 h" in text
        assert "Shuffled labels 0.512 (0.470–0.550) – 34 s Mean over <20>." in text
        assert "File metadata only 0.830 79.0 2 s A random forest." in text
        assert "Augmented before the split Not run: There are too <few> images." in text
        assert "Random initial weights one class is missing 70.0 10 min" in text


def test_both_thresholds_the_band_and_the_tests_of_heat_maps_are_shown(
    pages: Callable[[str], list[str]],
) -> None:
    for page in pages("figures"):
        text = text_of(page)
        assert "Slice positive at 0.410 or above Inconclusive from 0.300 to below 0.500" in text
        assert "Series positive at 0.222 or above Inconclusive from 0.111 to below 0.333" in text
        assert "Slice 99.0 of 80 87.5 of 64 28.0 of 200" in text
        assert "Patient no results 50.0 of 6 10.0 of 20" in text
        assert "than covering a random 10% of the head 91.2 (85.0–96.0) of 200" in text
        assert "the hottest cell was in or next to the outlined hemorrhage no outlines" in text


def test_a_card_of_an_old_version_says_what_it_lacks(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        old = add_version("old")
        off = add_version("off", card=a_card(settings={"controls": "none"}))
    assert (
        "This version was created before runs included controls."
        in admin.get(f"/admin/models/{old}?show=controls").text
    )
    assert (
        "Controls were disabled for this run."
        in admin.get(f"/admin/models/{off}?show=controls").text
    )
    text = text_of(admin.get(f"/admin/models/{old}?show=figures").text)
    assert "Series same thresholds" in text and "By patient" not in text


def test_why_a_version_is_blocked_stands_with_its_controls(app: Flask, admin: FlaskClient) -> None:
    sentence = "With labels permuted something leaks."
    with app.app_context():
        id = add_version(
            "leaky", card=full_card(blocked_because=sentence), blocked_because=sentence
        )
    assert f"This version cannot be promoted. {sentence}" in text_of(
        admin.get(f"/admin/models/{id}").text
    )
    assert (f"This version cannot be promoted. {sentence} Controls Run AUROC of slices") in text_of(
        admin.get(f"/admin/models/{id}?show=controls").text
    )


def test_differences_to_other_versions_are_seen_from_both_sides(
    app: Flask, admin: FlaskClient
) -> None:
    differences = {
        "slice": {
            "n": 200,
            "auroc": figure(0.012, low=-0.004, high=0.03),
            "accuracy": figure(-0.02, low=-0.05, high=0.01),
        },
        "patient": {
            "n": 0,
            "auroc": figure(None, reason="one class is missing"),
            "accuracy": figure(None, reason="there is no image"),
        },
    }
    with app.app_context():
        earlier = add_version("earlier-one", created_at=utc_now())
        nothing = add_version("no-answers", created_at=utc_now())
        later = add_version("later-one", created_at=utc_now())
        for other, difference in (
            (earlier, differences),
            (nothing, {"reason": "These runs have no image in common."}),
        ):
            results = [{"source": "out of fold", **difference}]
            db.session.add(
                Comparison(version_id=later, other_id=other, results=results, status=JobStatus.DONE)
            )
        db.session.commit()
    text = text_of(admin.get(f"/admin/models/{later}?show=evaluations").text)
    assert (
        "AlexNet SVM · v1 out of fold slice 200 +0.012 (−0.004 to +0.030) −2.0 (−5.0 to +1.0)"
        in text
    )
    assert "patient 0 no patient in common" in text
    assert "AlexNet SVM · v2 out of fold These runs have no image in common." in text
    assert (
        "AlexNet SVM · v3 out of fold slice 200 −0.012 (−0.030 to +0.004) +2.0 (−1.0 to +5.0)"
        in text_of(admin.get(f"/admin/models/{earlier}?show=evaluations").text)
    )
    assert "AlexNet SVM · v3 out of fold These runs have no image in common." in text_of(
        admin.get(f"/admin/models/{nothing}?show=evaluations").text
    )


def test_a_version_that_was_compared_with_none_says_so(app: Flask, admin: FlaskClient) -> None:
    with app.app_context():
        id = add_version("alone")
    assert (
        "there was nothing to compare this version with"
        in admin.get(f"/admin/models/{id}?show=evaluations").text
    )
