"""The time left of a training, on timelines that were recorded or made up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from ml.catalogue import architecture_named
from ml.checkpoints import RESUMED
from ml.expected_fits import LEARNING, MAPS, READING, Step
from ml.expected_time import Part, expected_parts
from ml.training.progress import Meter, Progress

RECORDED = sorted((Path(__file__).parent / "timelines").glob("*.json"))
"""Of trainings on head_ct, phantoms and 24 patients of ct_ich, in CPU seconds, as other work on the
machine would disturb the clock: [seconds, part, share of it] of each report, and true if it was
read from a checkpoint.
"""
Report = tuple[float, str, float] | tuple[float, str, float, Mapping[str, float]]


def reports_of(parts: list[Part], steps: Iterable[Report]) -> list[tuple[float, Progress]]:
    """Return what a meter says at each step of a timeline."""
    now, reports = [0.0], list[tuple[float, Progress]]()
    meter = Meter(
        lambda progress: reports.append((now[0], progress)), lambda: False, parts, lambda: now[0]
    )
    for seconds, part, share, *metrics in steps:
        now[0] = seconds
        meter.part(part)(part, share, metrics[0] if metrics else {})
    return reports


def require_right(
    reports: list[tuple[float, Progress]], end: float, after: float = 0.1, most: float = 1.0
) -> None:
    """Check that from the share `after` of the time on, the time left is right within a third for
    the share `most` of it, and never wrong by more than a third of the whole: a step that
    reports nothing for a while makes it stand still.
    """
    right, whole = 0.0, 0.0
    for (now, progress), (then, _) in itertools.pairwise(reports):
        if now < after * end:
            continue
        left = end - now
        assert progress.eta_s is not None, f"{now:.0f} s: nothing"
        wrong = abs(progress.eta_s - left)
        assert wrong <= max(left / 3, end / 3), (
            f"at {now:.1f} of {end:.1f} s ({progress.stage}): {progress.eta_s:.1f} s instead of"
            f" {left:.1f} s"
        )
        whole += then - now
        right += (then - now) * (wrong <= max(left / 3, end / 50))
    assert right >= most * whole - 1e-9, f"{right / whole:.2f}"


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_time_left_of_a_recorded_training_is_right_within_a_third(path: Path) -> None:
    result = json.loads(path.read_text())
    settings = architecture_named(result["architecture"]).parse_settings(result["settings"])
    known = {key: result.get(key) for key in ("positives", "scans")}
    is_random = result.get("starts_random", True)
    parts = expected_parts(
        result["architecture"], settings, result["images"], starts_random=is_random, **known
    )
    steps = [(*step[:3], {RESUMED: 1.0} if step[3:] else {}) for step in result["steps"]]
    require_right(reports_of(parts, steps), steps[-1][0], most=0.85)


def timeline(parts: list[Part], slowness: dict[str, float], pieces: int = 20) -> list[Report]:
    """Return the reports of a training of which each part is that much slower than expected."""
    now, reports = 0.0, list[Report]()
    for part in parts:
        reports.append((now, part.name, 0.0))
        shares = sum(step.share for step in part.steps)
        begin = 0.0
        for step in part.steps:
            for piece in range(1, pieces + 1):
                share = begin + step.share * piece / pieces
                last = part.seconds_at((begin + step.share * (piece - 1) / pieces) / shares)
                gained = part.seconds_at(share / shares) - last
                now += gained * slowness.get(part.name, slowness[""])
                reports.append((now, part.name, share / shares))
            begin += step.share
    return reports


@pytest.mark.parametrize("slowness", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("architecture", ["alexnet_svm", "alexnet_cells", "cnn_gru"])
def test_the_time_left_is_right_on_faster_and_slower_machines(
    slowness: float, architecture: str
) -> None:
    settings = architecture_named(architecture).parse_settings({"controls": "all"})
    parts = expected_parts(architecture, settings, 200)
    # Images come from a somewhat slower disk; controls are harder to fit than folds.
    steps = timeline(parts, {"": slowness, "reading": 1.25 * slowness, "controls": 1.3 * slowness})
    require_right(reports_of(parts, steps), steps[-1][0])


def test_the_time_left_of_a_long_first_fit_follows_the_speed_of_that_fit() -> None:
    fit = Step(LEARNING, 1000.0)
    parts = [Part("reading", (Step(READING, 100.0),)), Part("folds", (fit,) * 4)]
    parts.append(Part("final", (fit,)))
    steps = timeline(parts, {"": 3.0, "reading": 0.5}, pieces=200)

    require_right(reports_of(parts, steps), steps[-1][0])


def test_fits_of_few_images_take_as_long_against_their_heat_maps_as_was_recorded() -> None:
    settings = architecture_named("alexnet").parse_settings(
        {"folds": 3, "epochs": 4, "controls": "none"}
    )
    parts = {part.name: part for part in expected_parts("alexnet", settings, 200)}
    maps = [step.seconds for step in parts["folds"].steps if step.kind == MAPS]
    fits = [parts["folds"].seconds - sum(maps)]
    # On head_ct the fits of three folds took 62, 47 and 62 s, their heat maps 29, 40 and 17 s, and
    # the final fit 103 s.
    assert sum(fits) / sum(maps) == pytest.approx((62 + 47 + 62) / (29 + 40 + 17), rel=1 / 3)
    assert parts["final"].seconds / sum(fits) == pytest.approx(103 / (62 + 47 + 62), rel=1 / 3)


def test_what_a_checkpoint_holds_says_nothing_about_the_speed() -> None:
    parts = [Part("reading", (Step(READING, 1.0),)), Part("folds", (Step(LEARNING, 100.0),) * 4)]
    # Three folds and half of the fourth were computed before, and reading them takes a while; the
    # rest takes twice as long as expected.
    steps: list[Report] = [(0.0, "reading", 0.0), (1.0, "reading", 1.0)]
    steps += [(1.0 + fold, "folds", fold / 4, {RESUMED: 1.0}) for fold in (1, 2, 3)]
    steps += [(5.0, "folds", 0.875, {RESUMED: 1.0})]
    steps += [(5 + 2 * percent, "folds", (350 + percent) / 400) for percent in range(1, 51)]
    reports = reports_of(parts, steps)
    assert all(RESUMED not in progress.metrics for _, progress in reports)
    require_right(reports[10:], steps[-1][0], after=0.0)
    assert [progress.fraction for _, progress in reports] == sorted(p.fraction for _, p in reports)


def test_heat_maps_that_are_faster_than_expected_say_nothing_about_the_fits() -> None:
    fold = (Step(LEARNING, 20.0), Step(MAPS, 80.0))
    parts = [Part("folds", fold * 5), Part("final", (Step(LEARNING, 30.0),))]
    steps = timeline(parts, {"": 1.0})
    slower = [(seconds, part, share) for seconds, part, share, *_ in steps]
    now, last, told = 0.0, 0.0, list[Report]()
    for seconds, part, share in slower:
        is_fit = part == "final" or (share * 10 - 1e-9) % 2 < 1
        now, last = now + (seconds - last) * (3.0 if is_fit else 0.2), seconds
        told.append((now, part, share))
    # From the end of the first fold on, both speeds are known.
    require_right(reports_of(parts, told), now, after=0.2, most=1.0)
