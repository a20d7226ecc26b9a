"""The check "this does not image like a head CT": what it measures, what it refuses, how it
fails.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ml.errors import ArtifactError
from ml.gate_training.other_images.families import other_images
from ml.gate_training.other_images.heads import phantom_heads
from ml.gate_training.results import Measured, intervals
from ml.inference.gate import GATE_DIR, REFUSED_FROM, Gate, checked_slices, gate
from ml.inference.gate_measures import measure, prepare_image
from ml.inference.gate_views import VIEW_PX, errors, view_of
from ml.scans.phantoms import phantom
from ml.scans.read import read_series
from ml.scans.slices import Slice


def head(seed: int = 1, size: int = 256) -> Slice:
    return Slice(phantom(seed, seed % 2 == 0, size=size).astype(np.float32), "hu")


def oval(rim: float, inside: float) -> Slice:
    """An upright ellipse, its shell of that gray, its inside of that."""
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    away = np.hypot(x / 0.6, y / 0.8)
    return Slice(
        np.where(away < 0.85, inside, np.where(away < 1, rim, 0)).astype(np.float32), "display"
    )


class TestMeasures:
    def test_a_closed_bright_shell_is_distinguished_from_a_dark_one(self) -> None:
        bone, no_bone = (
            measure(prepare_image(oval(1.0, 0.4))),
            measure(prepare_image(oval(0.3, 0.6))),
        )
        assert bone["peak_over_inside"] == pytest.approx(0.6, abs=0.05) and bone["closed"] > 0.95
        assert no_bone["peak_over_inside"] < 0.05 and no_bone["closed"] == 0
        assert bone["oblong"] == pytest.approx(0.75, abs=0.03) and bone["wide"] == pytest.approx(
            0.75, abs=0.03
        )
        assert bone["solidity"] > 0.97 and bone["symmetry"] > 0.9

    def test_a_body_cut_off_by_the_picture_lies_on_its_edge(self) -> None:
        whole = oval(1.0, 0.4)
        cut_off = Slice(whole.pixels[:, 70:130], "display")
        # Margins are taken off but for two pixels, so some of every outline lies on the edge.
        assert (
            measure(prepare_image(whole))["on_edge"]
            < 0.35
            < 0.5
            < measure(prepare_image(cut_off))["on_edge"]
        )

    def test_they_depend_little_on_size_and_plain_margins(self) -> None:
        small, large = (
            measure(prepare_image(head(size=192))),
            measure(prepare_image(head(size=512))),
        )
        framed = measure(
            prepare_image(Slice(np.pad(head(size=512).pixels, 150, constant_values=-1000), "hu"))
        )
        for name in ("oblong", "solidity", "peak_over_inside", "inside_middle", "symmetry"):
            assert small[name] == pytest.approx(large[name], abs=0.12), name
            assert framed[name] == pytest.approx(large[name], abs=0.08), name

    def test_a_picture_without_a_body_has_none(self) -> None:
        image = prepare_image(Slice(np.zeros((64, 64), np.float32), "display"))
        assert measure(image) == {}
        with pytest.raises(ValueError, match="no body"):
            view_of(image)

    def test_the_view_is_the_square_around_the_body(self) -> None:
        view, mask = view_of(prepare_image(oval(1.0, 0.4)))
        assert (
            view.shape == (VIEW_PX, VIEW_PX, 1)
            and view.dtype == np.float32
            and 0 <= view.min() <= view.max() <= 1
        )
        rows, columns = (
            np.flatnonzero((mask > 0.5).any(axis=1)),
            np.flatnonzero((mask > 0.5).any(axis=0)),
        )
        assert len(rows) == pytest.approx(VIEW_PX / 1.1, abs=2)  # the longer side of the body
        assert rows[0] + rows[-1] == pytest.approx(VIEW_PX - 1, abs=2) and columns[0] + columns[
            -1
        ] == pytest.approx(VIEW_PX - 1, abs=2)

    def test_an_error_counts_against_the_contrast_around_it(self) -> None:
        rng = np.random.default_rng(0)
        mask = np.ones((VIEW_PX, VIEW_PX), np.float32)
        flat = np.full((VIEW_PX, VIEW_PX), 0.5, np.float32)
        rough = rng.random((VIEW_PX, VIEW_PX)).astype(np.float32)
        assert errors(flat, flat, mask)["error_normalised"] == pytest.approx(np.log(1e-3))
        off_flat, off_rough = (
            errors(flat, flat + 0.1, mask),
            errors(rough, rough + np.float32(0.1), mask),
        )
        assert (
            off_flat["error"]
            == pytest.approx(off_rough["error"], abs=1e-3)
            == pytest.approx(np.log(0.01), abs=0.01)
        )
        assert off_flat["error_normalised"] > off_rough["error_normalised"] + 2


class TestAnswers:
    def test_phantom_heads_pass(self) -> None:
        assert (
            max(gate().score(head(seed, size)) for seed in range(6) for size in (128, 256, 512))
            < REFUSED_FROM
        )
        others = [gate().score(slice) for slice in phantom_heads(40)]
        assert np.mean(np.array(others) >= REFUSED_FROM) <= 0.05

    @pytest.mark.parametrize(
        "family",
        [
            "noise",
            "text_page",
            "checkerboard",
            "chest_ct",
            "knee_ct",
            "brain_mr_t2",
            "chest_xray",
            "hand_xray",
        ],
    )
    def test_what_is_no_head_ct_is_refused(self, family: str) -> None:
        scores = np.array([gate().score(one.slice) for one in other_images(family, 6, seed=11)])
        assert (scores >= REFUSED_FROM).sum() >= 5

    def test_a_picture_without_a_body_is_refused(self) -> None:
        assert gate().score(Slice(np.zeros((64, 64), np.float32), "display")) == 1

    def test_of_a_long_series_fifteen_slices_are_looked_at(self) -> None:
        chosen = sorted(checked_slices(200))
        assert len(chosen) == 15 and (chosen[0], chosen[-1]) == (0, 199)
        assert set(np.diff(chosen)) == {14, 15}
        assert checked_slices(3) == {0, 1, 2} and checked_slices(1) == {0}

    def test_real_heads_of_every_source_pass(self, shared_data: Path) -> None:
        paths = [
            *sorted(shared_data.glob("head_ct/head_ct/*.png"))[::10],
            *sorted(shared_data.glob("ct_ich/images/*/*"))[::75],
        ]
        scores = [gate().score(read_series([path]).slices[0]) for path in paths]
        assert np.mean(np.array(scores) >= REFUSED_FROM) <= 0.05


class TestFiles:
    def test_the_card_tells_what_it_was_measured_on(self) -> None:
        card = json.loads((GATE_DIR / "card.json").read_text(encoding="utf-8"))
        rows = {row["family"]: row for row in card["figures"]}
        assert rows["all head CT"]["n"] > 2000 and rows["all odd pictures"]["n"] >= 200
        assert card["refused_from"] == REFUSED_FROM
        assert sum(path.stat().st_size for path in GATE_DIR.iterdir()) < 600_000

    def test_altered_and_missing_files_are_reported(self, tmp_path: Path) -> None:
        shutil.copytree(GATE_DIR, tmp_path / "gate")
        with (tmp_path / "gate" / "judge.onnx").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ArtifactError, match=r"judge.onnx .* was changed"):
            Gate(tmp_path / "gate")
        (tmp_path / "gate" / "judge.onnx").unlink()
        with pytest.raises(ArtifactError, match="incomplete"):
            Gate(tmp_path / "gate")

    def test_it_loads_nothing_that_only_training_needs(self) -> None:
        script = (
            "import sys, ml.inference.gate; ml.inference.gate.gate()\nroots = {name.split('.')[0]"
            " for name in sys.modules}\nsys.exit(', '.join(roots & {'tensorflow', 'keras',"
            " 'sklearn', 'scipy', 'skimage', 'matplotlib', 'onnx', 'pydicom'}) or 0)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script],
            cwd=GATE_DIR.parents[1],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (run.returncode, run.stderr) == (0, "")


class TestFigures:
    def test_heads_are_counted_by_data_set_and_odd_pictures_by_family(self) -> None:
        measured = [
            Measured("a", "head CT", 0.1),
            Measured("b", "head CT", 0.9),
            Measured("a", "head CT, varied", 0.9),
            Measured("made", "noise", 1.0),
            Measured("made", "chart", 0.2),
        ]
        rows = {str(row["family"]): (row["n"], row["refused"]) for row in intervals(measured, 0.5)}
        assert (
            rows["head CT: a"] == (1, 0)
            and rows["head CT: b"] == (1, 1)
            and rows["head CT, varied: a"] == (1, 1)
        )
        assert (
            rows["all head CT"] == (2, 1)
            and rows["all odd pictures"] == (2, 1)
            and rows["noise"] == (1, 1)
        )
