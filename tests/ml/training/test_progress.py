"""The time left of a training, on timelines that were recorded or made up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from ml.catalogue import architecture_named
from ml.checkpoints import RESUMED
from ml.expected_time import Part, expected_parts
from ml.training.progress import Meter, Progress

RECORDED = sorted((Path(__file__).parent / "timelines").glob("*.json"))
"""Of trainings on head_ct, in CPU seconds, as other work on the machine would disturb the clock:
[seconds, part, share of it] of each step.
"""
Step = tuple[float, str, float] | tuple[float, str, float, Mapping[str, float]]


def reports_of(parts: list[Part], steps: Iterable[Step]) -> list[tuple[float, Progress]]:
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
    the share `most` of it, and never wrong by more than a quarter of the whole: a step that
    reports nothing for a while makes it stand still.
    """
    right, whole = 0.0, 0.0
    for (now, progress), (then, _) in itertools.pairwise(reports):
        if now < after * end:
            continue
        left = end - now
        assert progress.eta_s is not None, f"{now:.0f} s: nothing"
        wrong = abs(progress.eta_s - left)
        assert wrong <= max(left / 3, end / 4), (
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
    parts = expected_parts(result["architecture"], settings, result["images"], starts_random=True)
    require_right(reports_of(parts, result["steps"]), result["steps"][-1][0], most=0.75)


def timeline(parts: list[Part], slowness: dict[str, float], pieces: int = 20) -> list[Step]:
    """Return the steps of a training of which each part is that much slower than expected."""
    now, steps = 0.0, list[Step]()
    for part in parts:
        steps.append((now, part.name, 0.0))
        for piece in range(1, pieces * len(part.steps) + 1):
            share = piece / (pieces * len(part.steps))
            last = part.seconds_at((piece - 1) / (pieces * len(part.steps)))
            now += (part.seconds_at(share) - last) * slowness.get(part.name, slowness[""])
            steps.append((now, part.name, share))
    return steps


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
    parts = [Part("reading", (100.0,)), Part("folds", (1000.0,) * 4), Part("final", (1000.0,))]
    steps = timeline(parts, {"": 3.0, "reading": 0.5}, pieces=200)

    require_right(reports_of(parts, steps), steps[-1][0])


def test_fits_of_few_images_take_as_long_against_their_heat_maps_as_was_recorded() -> None:
    settings = architecture_named("alexnet").parse_settings(
        {"folds": 3, "epochs": 4, "controls": "none"}
    )
    parts = {part.name: part for part in expected_parts("alexnet", settings, 200)}
    fits, maps = parts["folds"].steps[::2], parts["folds"].steps[1::2]
    # On head_ct the fits of three folds took 62, 47 and 62 s, their heat maps 29, 40 and 17 s, and
    # the final fit 103 s.
    assert sum(fits) / sum(maps) == pytest.approx((62 + 47 + 62) / (29 + 40 + 17), rel=1 / 3)
    assert parts["final"].seconds / sum(fits) == pytest.approx(103 / (62 + 47 + 62), rel=1 / 3)


def test_what_a_checkpoint_holds_says_nothing_about_the_speed() -> None:
    parts = [Part("reading", (1.0,)), Part("folds", (100.0,) * 4)]
    # Three folds and half of the fourth were computed before, and reading them takes a while; the
    # rest takes twice as long as expected.
    steps: list[Step] = [(0.0, "reading", 0.0), (1.0, "reading", 1.0)]
    steps += [(1.0 + fold, "folds", fold / 4, {RESUMED: 1.0}) for fold in (1, 2, 3)]
    steps += [(5.0, "folds", 0.875, {RESUMED: 1.0})]
    steps += [(5 + 2 * percent, "folds", (350 + percent) / 400) for percent in range(1, 51)]
    reports = reports_of(parts, steps)
    assert all(RESUMED not in progress.metrics for _, progress in reports)
    require_right(reports[10:], steps[-1][0], after=0.0)
    assert [progress.fraction for _, progress in reports] == sorted(p.fraction for _, p in reports)
