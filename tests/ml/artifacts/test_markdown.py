"""The card as a person reads it: made from its JSON, with patients and controls where there are
any.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ml.artifacts.card import Card
from ml.artifacts.markdown import model_card
from ml.errors import ArtifactError
from tests.ml.conftest import metrics_of, named_points_of_card, type_figures_of_card

MakeCard = Callable[..., Card]


def a_full_card(make_card: MakeCard, **changed: Any) -> Card:
    given: dict[str, Any] = {
        "data": {
            "datasets": ["a", "b"],
            "images": 40,
            "positive": 20,
            "negative": 20,
            "groups": 30,
            "judged": 40,
            "fingerprint": "f" * 64,
            "training": "0" * 64,
            "initial_weights": {"kind": "random"},
            "licence_notes": [],
        },
        "metrics": metrics_of(0.9),
        "metrics_by_dataset": {"a": metrics_of(0.92), "b": metrics_of(0.7)},
        "patient_metrics": metrics_of(0.8),
        "patient_metrics_by_dataset": {"a": metrics_of(0.81), "b": metrics_of(0.79)},
        "band": {
            "slice": {
                "npv": {"value": 0.975, "n": 40},
                "ppv": {"value": None, "n": 0},
                "uncertain": {"value": 0.25, "n": 80},
            },
        },
        "confusion": {"tp": 17, "fn": 3, "tn": 15, "fp": 5},
        "scan_threshold": 0.7,
        "scan_uncertain_low": 0.6,
        "scan_uncertain_high": 0.8,
        "seconds": 61.0,
        "controls": [
            {
                "name": "permuted",
                "auroc": {"value": 0.51, "low": 0.47, "high": 0.55, "n": 20},
                "seconds": 30.0,
                "how": "Labels moved.",
            },
            {
                "name": "random_weights",
                "skipped": "The run itself started from random weights.",
                "seconds": 0.0,
            },
        ],
    }
    return make_card(**{**given, **changed})


def test_the_run_stands_beside_its_controls(make_card: MakeCard) -> None:
    text = model_card(a_full_card(make_card))
    assert (
        "| **this model** | 0.900 (0.800 to 0.950) | 40 | 0.900 (0.800 to 0.950) | 61 in all | as"
        " above |" in text
    )
    assert "| permuted | 0.510 (0.470 to 0.550) | 20 | – | 30 | Labels moved. |" in text
    assert "not run: The run itself started from random weights." in text


def test_patients_thresholds_band_and_failures_are_reported(make_card: MakeCard) -> None:
    text = model_card(a_full_card(make_card))
    assert "By patient" in text and "| auroc | 0.800 (0.700 to 0.850) | 0.810" in text
    assert "For a scan of several slices it is 0.700; 0.600 to 0.800 is inconclusive." in text
    assert "(NPV) 0.975 of 40" in text and "(PPV) undefined" in text and "25.0%" in text
    assert (
        "Of 20 slices with hemorrhage 3 were missed;\n  of 20 without, 5 were false alarms." in text
    )
    assert "weakest on b (AUROC of slices 0.700)" in text and "Cannot be promoted" not in text


def test_types_of_bleeding_are_reported_with_their_figures_and_few_patients_one_by_one(
    make_card: MakeCard,
) -> None:
    text = model_card(a_full_card(make_card, types=type_figures_of_card()))
    figures = (
        "0.800 (0.700 to 0.900) | 0.800 (0.700 to 0.900) | 0.600 (0.500 to 0.700) | 0.050 (0.020 to"
        " 0.100)"
    )
    assert f"| epidural | yes | 12 of 80 | 12 of 40 | {figures} |" in text
    assert "| subdural | yes | 4 of 80 | 3 of 40 | few patients | – | – | – |" in text
    assert (
        "Patients with subdural hemorrhage: 0.500 (rank 2 of 40), 0.500 (rank 7 of 40), no result."
        in text
    )
    assert "| intraventricular | no | 0 of 80 | 0 of 40 | few patients |" in text
    assert "Type of hemorrhage" not in model_card(a_full_card(make_card))


def test_a_blocked_model_says_so_first(make_card: MakeCard) -> None:
    assert "- **Cannot be promoted.** It leaks." in model_card(
        a_full_card(make_card, blocked_because="It leaks.")
    )


def test_a_card_of_the_first_version_is_read_and_judges_series_as_before(
    make_card: MakeCard,
) -> None:
    old = json.loads(a_full_card(make_card).to_json())
    for name in (
        "scan_threshold",
        "scan_uncertain_low",
        "scan_uncertain_high",
        "patient_metrics",
        "patient_metrics_by_dataset",
    ):
        del old[name]
    for name in ("band", "controls", "blocked_because", "seconds", "types"):
        del old[name]
    card = Card.from_json(json.dumps(old))
    assert (
        card.operating_point(1) == card.operating_point(30) == (0.5, 0.4, 0.6)
        and card.controls == []
    )
    assert card.types == {} and card.reported_types == ()
    assert "## Controls" not in model_card(card) and "By patient" not in model_card(card)
    del old["threshold"]
    with pytest.raises(ArtifactError, match="missing required field `threshold`"):
        Card.from_json(json.dumps(old))


def test_a_scan_threshold_out_of_range_is_refused(make_card: MakeCard) -> None:
    with pytest.raises(
        ArtifactError, match=r"threshold 1.5 and inconclusive band 0.6 to 0.8 must lie"
    ):
        Card.from_json(a_full_card(make_card, scan_threshold=1.5).to_json())


def test_operating_points_stand_in_tables_with_a_sentence_each(make_card: MakeCard) -> None:
    text = model_card(a_full_card(make_card, points=named_points_of_card()))
    assert text.count("| point | threshold | sensitivity | specificity | PPV at 2% |") == 2
    assert "| balanced | 0.300 | 0.900 (0.850 to 0.950) | 0.930 (0.880 to 0.980) | 0.300" in text
    assert (
        "- Balanced: Of 100 scans, 10 of them with hemorrhage: finds 9, misses 1, flags 6 of the 90"
        " without." in text
    )
    assert "- Specific: Of 100 slices, 10 of them with hemorrhage: finds 7, misses 3" in text
    assert "Operating points" not in model_card(a_full_card(make_card))


def test_other_thresholds_widen_the_band_where_they_lie_outside(make_card: MakeCard) -> None:
    card = a_full_card(make_card)
    changed = card.with_thresholds(0.45, 0.95)
    assert changed.operating_point(1) == (0.45, 0.4, 0.6)
    assert changed.operating_point(30) == (0.95, 0.6, 0.95)
    assert card.with_thresholds(None, 0.1).operating_point(1) == card.operating_point(1)
    assert card.with_thresholds(None, 0.1).operating_point(30) == (0.1, 0.1, 0.8)
    old = a_full_card(make_card, scan_threshold=-1.0).with_thresholds(0.9, None)
    assert old.operating_point(1) == (0.9, 0.4, 0.9) and old.operating_point(30) == (0.5, 0.4, 0.6)
    with pytest.raises(ArtifactError, match="threshold 1.5 does not lie within 0 and 1"):
        card.with_thresholds(None, 1.5)
