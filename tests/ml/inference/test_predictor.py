from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, load_from_string

from ml.artifacts.card import FEATURES, HEAD, TYPES, Card
from ml.artifacts.folder import write_model
from ml.errors import ArtifactError, ImageError
from ml.inference.gate import REFUSED_FROM
from ml.inference.predictor import NOT_HEAD_CT, SLICE_ABOVE_THRESHOLD, Predictor, Stopped
from ml.preprocessing.model_input import NOT_STRIPPED, InputSpec
from ml.scans.phantoms import phantom
from ml.scans.read import read_series
from ml.scans.slices import FloatArray, Series, Slice, render
from tests.ml.conftest import (
    CELLS,
    a_card,
    features_graph,
    head_graph,
    type_figures_of_card,
    types_graph,
)

TinyModel = Callable[..., Path]
CELL = 8  # px of the tiny model's input for one cell; it reads cell (2, 5) unless told otherwise


def with_bright_cell(brightness: float, row: int = 2, column: int = 5) -> Slice:
    """A 64 x 64 picture of gray 0.1 in which one cell has this brightness."""
    pixels = np.full((64, 64), 0.1, np.float32)
    pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = brightness
    return Slice(pixels, "display")


def sigmoid(z: float) -> float:
    return float(1 / (1 + np.exp(-z)))


def test_a_finding_has_the_probability_of_the_graph(tiny_model: TinyModel) -> None:
    result = Predictor(tiny_model()).predict(Series((with_bright_cell(0.75),)))
    assert result.probability == pytest.approx(sigmoid(8 * 0.25), abs=1e-6)
    assert result.slice_probabilities == (pytest.approx(sigmoid(2), abs=1e-6),)
    assert (result.threshold, result.positive, result.uncertain) == (0.5, True, False)


@pytest.mark.parametrize(
    ("logit", "positive", "uncertain", "state"),
    [
        (-2.0, False, False, "not found"),
        (-0.3, False, True, "inconclusive"),
        (0.3, True, True, "inconclusive"),
        (2.0, True, False, "suspected"),
    ],
)
def test_threshold_and_uncertain_band_are_the_cards(
    tiny_model: TinyModel, logit: float, positive: bool, uncertain: bool, state: str
) -> None:
    result = Predictor(tiny_model()).predict(Series((with_bright_cell(0.5 + logit / 8),)))
    assert (result.positive, result.uncertain, result.state) == (positive, uncertain, state)


def test_the_threshold_itself_is_positive_and_the_band_is_half_open(tiny_model: TinyModel) -> None:
    half = Series((with_bright_cell(0.5),))
    assert Predictor(tiny_model()).predict(half).positive
    assert Predictor(tiny_model(uncertain_low=0.5)).predict(half).uncertain
    assert not Predictor(tiny_model(uncertain_high=0.5)).predict(half).uncertain


def test_many_scans_get_the_answers_that_each_gets_alone(tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model(reads="series", head={"context": 0.5}))
    rng = np.random.default_rng(1)
    scans = [
        Series(tuple(with_bright_cell(float(rng.random())) for _ in range(n)))
        for n in (1, 20, 2, 16, 5)
    ]
    together = predictor.predict_many(scans)
    assert [len(result.slice_probabilities) for result in together] == [1, 20, 2, 16, 5]
    for result, scan in zip(together, scans, strict=True):
        alone = predictor.predict(scan)
        np.testing.assert_allclose(result.slice_probabilities, alone.slice_probabilities, atol=1e-6)
        assert result.probability == pytest.approx(alone.probability, abs=1e-6)
        assert result.probability == max(result.slice_probabilities)
    assert predictor.predict_many([]) == []


def test_warnings_of_the_series_reach_the_finding(tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model(), checks_head_ct=False)
    result = predictor.predict(
        Series((with_bright_cell(0.9),), ("The image was in color and was converted to gray.",))
    )
    assert result.warnings == ("The image was in color and was converted to gray.",)


def test_what_is_no_head_ct_is_answered_for_and_called_so(tiny_model: TinyModel) -> None:
    bars = Series((with_bright_cell(0.9),) * 20)
    result = Predictor(tiny_model()).predict(bars)
    assert result.refused and result.not_head_ct >= REFUSED_FROM
    assert result.warnings == (NOT_HEAD_CT,)
    assert result.probability == pytest.approx(sigmoid(8 * 0.4), abs=1e-6)
    unasked = Predictor(tiny_model(), checks_head_ct=False).predict(bars)
    assert (unasked.refused, unasked.not_head_ct, unasked.warnings) == (False, 0.0, ())


def test_a_head_is_not_refused(tiny_model: TinyModel) -> None:
    head = Slice(phantom(3, hemorrhage=True, size=256).astype(np.float32), "hu")
    result = Predictor(tiny_model()).predict(Series((head,)))
    assert not result.refused and result.not_head_ct < REFUSED_FROM and result.warnings == ()


def test_of_a_series_the_median_of_the_head_ct_check_counts(tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model())
    air = Slice(np.zeros((64, 64), np.float32), "display")
    heads = [
        Slice(phantom(seed, hemorrhage=False, size=256).astype(np.float32), "hu")
        for seed in range(3)
    ]
    assert not predictor.predict(Series((air, *heads, air))).refused
    assert predictor.predict(Series((air, air, heads[0]))).not_head_ct == 1


def test_threads_do_not_change_the_answers(tiny_model: TinyModel) -> None:
    scans = [
        Series(tuple(with_bright_cell(brightness) for brightness in np.linspace(0.2, 0.9, n)))
        for n in (30, 1, 9)
    ]
    model = tiny_model(reads="series", head={"context": 0.5})
    one, three = Predictor(model), Predictor(model, threads=3)
    assert one.predict_many(scans) == three.predict_many(scans)
    for slow, fast in zip(
        one.heatmaps(scans[0], (3, 7)), three.heatmaps(scans[0], (3, 7)), strict=True
    ):
        assert np.array_equal(slow, fast)


def test_thin_slices_are_read_as_slabs_and_each_has_the_answer_of_its_own(
    tiny_model: TinyModel,
) -> None:
    thin = Series(
        tuple(with_bright_cell(brightness) for brightness in [0.5, 0.9, 0.7, 0.9, 0.5] + [0.1] * 5),
        (),
        1.0,
    )
    thick = Series((with_bright_cell(0.7), with_bright_cell(0.1)), (), 5.0)
    predictor = Predictor(tiny_model(reads="series", head={"context": 0.5}), checks_head_ct=False)
    of_thin, of_thick = predictor.predict(thin), predictor.predict(thick)
    assert of_thin.probability == pytest.approx(of_thick.probability, abs=1e-6)
    expected = np.repeat(of_thick.slice_probabilities, 5)
    np.testing.assert_allclose(of_thin.slice_probabilities, expected, atol=1e-6)
    assert (of_thin.first_slices, of_thick.first_slices) == ((2, 7), (0, 1))
    thin_map, same_slab, elsewhere = predictor.heatmaps(thin, [0, 4, 9])
    np.testing.assert_allclose(thin_map, predictor.heatmap(thick, 0), atol=1e-5)
    np.testing.assert_array_equal(thin_map, same_slab)
    np.testing.assert_allclose(elsewhere, predictor.heatmap(thick, 1), atol=1e-5)


def test_a_single_thin_slab_is_judged_as_a_single_slice(tiny_model: TinyModel) -> None:
    card = {"scan_threshold": 0.99, "scan_uncertain_low": 0.98, "scan_uncertain_high": 0.995}
    predictor = Predictor(tiny_model(**card), checks_head_ct=False)
    three = tuple(with_bright_cell(0.9) for _ in range(3))
    assert predictor.predict(Series(three, (), 1.0)).threshold == 0.5
    assert predictor.predict(Series(three, (), 5.0)).threshold == 0.99


def test_other_thresholds_decide_and_widen_the_band(tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model(), checks_head_ct=False)
    picture = Series((with_bright_cell(0.9),))
    trained = predictor.predict(picture)
    assert trained.positive and not trained.uncertain and trained.threshold == 0.5
    above = predictor.with_thresholds((trained.probability + 1) / 2, None).predict(picture)
    assert above.probability == trained.probability and above.threshold > trained.probability
    assert not above.positive and above.uncertain
    series = Series((with_bright_cell(0.9), with_bright_cell(0.1)), (), 5.0)
    assert predictor.with_thresholds(None, 0.2).predict(series).threshold == 0.2
    assert predictor.with_thresholds(None, 0.2).predict(picture).threshold == 0.5
    assert predictor.predict(series).threshold == 0.5, "the other predictor is its own"


def test_a_slice_above_its_threshold_in_a_scan_below_its_own_casts_doubt_on_the_result(
    tiny_model: TinyModel,
) -> None:
    card = {"scan_threshold": 0.99, "scan_uncertain_low": 0.99, "scan_uncertain_high": 0.99}
    predictor = Predictor(tiny_model(**card), checks_head_ct=False)
    bright, dark = with_bright_cell(0.9), with_bright_cell(0.1)

    result = predictor.predict(Series((bright, dark), (), 5.0))
    assert result.state == "not found" and max(result.slice_probabilities) >= 0.5
    assert result.doubts == (SLICE_ABOVE_THRESHOLD,) and SLICE_ABOVE_THRESHOLD in result.warnings
    assert predictor.predict(Series((dark, dark), (), 5.0)).doubts == ()
    found = predictor.with_thresholds(None, 0.2).predict(Series((bright, dark), (), 5.0))
    assert found.state != "not found" and found.doubts == ()


def test_types_of_bleeding_are_reported_for_the_scan_and_each_slice(tiny_model: TinyModel) -> None:
    series = Series((with_bright_cell(0.75), with_bright_cell(0.25)))
    result = Predictor(tiny_model(types=type_figures_of_card(), types_onnx=types_graph())).predict(
        series
    )
    assert result.types == {
        "epidural": pytest.approx(0.75 * result.probability),
        "subdural": pytest.approx(0.25 * result.probability),
    }
    expected = [0.75 * value for value in result.slice_probabilities]
    assert result.slice_types["epidural"] == pytest.approx(expected) and list(
        result.slice_types
    ) == [
        "epidural",
        "subdural",
    ]


def test_each_thin_slice_has_the_types_of_its_slab(tiny_model: TinyModel) -> None:
    thin = Series(
        tuple(with_bright_cell(brightness) for brightness in [0.8] * 5 + [0.1] * 5), (), 1.0
    )
    result = Predictor(tiny_model(types=type_figures_of_card(), types_onnx=types_graph())).predict(
        thin
    )
    assert result.slice_types["subdural"] == pytest.approx(
        [0.25 * value for value in result.slice_probabilities]
    )


def test_a_model_without_types_gives_none(tiny_model: TinyModel) -> None:
    result = Predictor(tiny_model()).predict(Series((with_bright_cell(0.75),)))
    assert result.types == result.slice_types == {}


def test_progress_is_reported_in_slices_and_a_stop_is_obeyed_between_slices(
    tiny_model: TinyModel,
) -> None:
    predictor = Predictor(tiny_model(), checks_head_ct=False)
    scan = Series(tuple(with_bright_cell(0.5) for _ in range(40)), (), 5.0)
    reports: list[tuple[int, int]] = []
    predictor.predict(scan, lambda done, total: reports.append((done, total)))
    assert reports == [(done, 40) for done in range(1, 41)]
    reports.clear()
    with pytest.raises(Stopped, match="was stopped"):
        predictor.predict(
            scan, lambda done, total: reports.append((done, total)), lambda: bool(reports)
        )
    assert reports == [(1, 40)]
    thin = Series(scan.slices, (), 1.0)
    predictor.predict_many([thin, scan], lambda done, total: reports.append((done, total)))
    # Eight slabs of five slices each, then slices.
    of_slabs, of_slices = range(5, 41, 5), range(41, 81)
    assert reports[1:] == [(done, 80) for done in (*of_slabs, *of_slices)]


def test_several_heat_maps_of_a_scan_are_those_of_each_and_run_the_convolutions_for_what_is_near(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Series(
        tuple(with_bright_cell(brightness, 2, 5) for brightness in np.linspace(0.2, 0.9, 20))
    )
    for reads in ("slice", "series"):
        predictor = Predictor(
            tiny_model(reads=reads, head={"context": 0.5 if reads == "series" else 0.0})
        )
        one_by_one = [predictor.heatmap(scan, index) for index in (19, 3)]
        ran: list[int] = []
        real = predictor._maps
        monkeypatch.setattr(
            predictor,
            "_maps",
            lambda pixels, real=real, ran=ran: ran.append(1) or real(pixels),
        )
        for together, alone in zip(predictor.heatmaps(scan, [19, 3]), one_by_one, strict=True):
            np.testing.assert_array_equal(together, alone)
        assert sum(ran) == {"slice": 2, "series": 5 + 8}[reads]  # those around 19 and around 3
        assert predictor.heatmaps(scan, []) == []


def test_a_verdict_takes_one_run_of_the_convolutions_a_slab_and_one_of_the_head_a_scan(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    real = onnxruntime.InferenceSession.run

    def run(session: onnxruntime.InferenceSession, names: list[str], *inputs: object) -> object:
        ran.append(names[0])
        return real(session, names, *inputs)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    thin = Series(tuple(with_bright_cell(0.5) for _ in range(40)), (), 1.0)  # Eight slabs.
    for threads in (1, 2):
        predictor = Predictor(tiny_model(), threads, checks_head_ct=False)
        predictor.predict_many([thin, Series((with_bright_cell(0.9),))])
        assert Counter(ran) == {"maps": 9, "slice_probability": 2}
        ran.clear()


def test_a_scan_without_a_head_is_noted(tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model(preprocessing={"size": 64}))
    dots = np.zeros((64, 64), np.float32)
    dots[::16, ::16] = 1
    assert "No head was found" in predictor.predict(Series((Slice(dots, "display"),))).warnings[0]


def test_a_scan_without_slices_is_a_value_error(tiny_model: TinyModel) -> None:
    with pytest.raises(ValueError, match="without slices"):
        Predictor(tiny_model()).predict(Series(()))


@pytest.mark.parametrize("brightness", [float("nan"), 0.75])
def test_an_answer_that_is_no_probability_is_refused(
    tiny_model: TinyModel, brightness: float
) -> None:
    predictor = Predictor(tiny_model(head={"gain": float("inf")} if brightness == 0.75 else {}))
    with pytest.raises(ArtifactError, match="did not output a probability"):
        predictor.predict(Series((with_bright_cell(brightness),)))


# Heat maps


def hottest(heat: FloatArray) -> tuple[float, float]:
    """The middle of the hottest place, (row, column)."""
    rows, columns = np.nonzero(heat > 0.95 * heat.max())
    return float(rows.mean() + 0.5), float(columns.mean() + 0.5)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (7, 3)])
def test_the_hottest_place_is_the_cell_that_the_answer_hangs_on(
    tiny_model: TinyModel, row: int, column: int
) -> None:
    predictor = Predictor(tiny_model(head={"row": row, "column": column}))
    slice = with_bright_cell(0.9, row, column)
    heat = predictor.heatmap(Series((slice,)))
    assert heat.shape == (64, 64)
    assert heat.dtype == np.float32
    assert heat.min() == 0
    assert 0.85 < heat.max() <= 1  # no pixel lies on the middle of an 8 px cell, where it is 1
    bright_rows, bright_columns = np.nonzero(np.asarray(render(slice, 64)) > 200)
    assert hottest(heat) == (
        pytest.approx(bright_rows.mean() + 0.5, abs=2),
        pytest.approx(bright_columns.mean() + 0.5, abs=2),
    )


def test_the_map_lies_over_the_original_where_the_head_was_cropped(tiny_model: TinyModel) -> None:
    rows, columns = np.indices((200, 300))
    # a round head in the right half
    pixels = np.where(np.hypot(rows - 90, columns - 220) < 60, 0.4, 0).astype(np.float32)
    pixels[60:78, 236:254] = 1  # blood
    slice = Slice(pixels, "display")
    # that is where the crop puts it
    predictor = Predictor(tiny_model(preprocessing={"size": 64}, head={"row": 2, "column": 5}))
    heat = predictor.heatmap(Series((slice,)))
    assert heat.shape == (200, 300)
    assert not heat[:, :150].any()
    assert hottest(heat) == (pytest.approx(69, abs=6), pytest.approx(245, abs=6))


def test_the_map_of_a_series_model_is_that_of_the_slice_asked_for(tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model(reads="series", head={"context": 0.5}))
    scan = Series((with_bright_cell(0.1), with_bright_cell(0.9), with_bright_cell(0.1)))
    assert hottest(predictor.heatmap(scan, 1)) == (
        pytest.approx(20, abs=2),
        pytest.approx(44, abs=2),
    )
    assert not predictor.heatmap(scan, 0).any()
    for index in (-1, 3):
        with pytest.raises(IndexError, match="has 3 slices"):
            predictor.heatmap(scan, index)


# Loading


def test_a_graph_that_cannot_be_loaded_is_an_artifact_error(tiny_model: TinyModel) -> None:
    with pytest.raises(ArtifactError, match=r"head\.onnx is not a readable ONNX graph"):
        Predictor(tiny_model(head=b"no graph"))


def test_a_graph_with_other_names_is_an_artifact_error(
    tmp_path: Path, tiny_model: TinyModel, make_card: Callable[..., Card]
) -> None:
    features = (tiny_model() / "features.onnx").read_bytes()
    write_model(tmp_path / "mixed", make_card(), {"features.onnx": features, "head.onnx": features})
    with pytest.raises(ArtifactError, match=r"head\.onnx must take 'maps'"):
        Predictor(tmp_path / "mixed")


def test_a_card_whose_types_have_no_graph_or_another_is_an_artifact_error(
    tiny_model: TinyModel,
) -> None:
    with pytest.raises(
        ArtifactError, match=r"lists types of hemorrhage, but there is no types\.onnx"
    ):
        Predictor(tiny_model(types=type_figures_of_card()))
    with pytest.raises(
        ArtifactError,
        match=r"types\.onnx must take 'maps' and 'slice_probability' and 'scan_probability'",
    ):
        Predictor(tiny_model(types=type_figures_of_card(), types_onnx=head_graph()))
    three = {
        name: replace(result, given=result.given or name == "intraventricular")
        for name, result in type_figures_of_card().items()
    }
    with pytest.raises(ArtifactError, match="did not output a probability for each slice"):
        Predictor(tiny_model(types=three, types_onnx=types_graph())).predict(
            Series((with_bright_cell(0.75),))
        )


@pytest.mark.parametrize(("odd", "name"), [(HEAD, "head"), (TYPES, "types")])
def test_graphs_that_disagree_on_the_channels_of_maps_are_an_artifact_error(
    tmp_path: Path, odd: str, name: str
) -> None:
    graphs = {HEAD: head_graph(), TYPES: types_graph()}
    model = load_from_string(graphs[odd])
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 3
    graphs[odd] = model.SerializeToString()
    write_model(
        tmp_path / "odd",
        a_card(types=type_figures_of_card()),
        {FEATURES: features_graph(), **graphs},
    )
    with pytest.raises(
        ArtifactError,
        match=(
            rf"{name}\.onnx takes maps of \['N', 8, 8, 3\], but its features\.onnx gives maps of"
            r" .* 1\]"
        ),
    ):
        Predictor(tmp_path / "odd")


def test_a_graph_whose_answers_are_no_numbers_is_an_artifact_error(tiny_model: TinyModel) -> None:
    words = [
        helper.make_tensor(name, TensorProto.STRING, shape, [b"a"])
        for name, shape in (("one", [1, 1]), ("other", [1]))
    ]
    takes: dict[str, list[object]] = {
        "maps": ["N", CELLS, CELLS, 1],
        "slice_probability": ["N"],
        "scan_probability": [1],
    }
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["one"], ["slice_types"]),
            helper.make_node("Identity", ["other"], ["scan_types"]),
        ],
        "words",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in takes.items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.STRING, shape)
            for name, shape in (("slice_types", [1, 1]), ("scan_types", [1]))
        ],
        words,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(
        ArtifactError, match=r"types\.onnx must use single precision for 'slice_types'"
    ):
        Predictor(tiny_model(types=type_figures_of_card(), types_onnx=model.SerializeToString()))


def test_unknown_preprocessing_is_an_artifact_error(tiny_model: TinyModel) -> None:
    with pytest.raises(ArtifactError, match="'turn' is unknown"):
        Predictor(tiny_model(preprocessing={"turn": 90}))


def test_a_predictor_loads_nothing_that_only_training_needs(tiny_model: TinyModel) -> None:
    script = (
        "import sys; from pathlib import Path; import ml.scans.phantoms, ml.inference.predictor,"
        " ml.inference.heat_maps\nfrom ml.scans.read import read_series\nfolder ="
        " Path(sys.argv[1]); ml.scans.phantoms.write_dicom(ml.scans.phantoms.phantom(1, True,"
        " size=128), folder / 'slice')\npredictor = ml.inference.predictor.Predictor(folder);"
        " series = read_series([folder / 'slice'])\npredictor.predict(series);"
        " predictor.heatmap(series)\nroots = {name.split('.')[0] for name in"
        " sys.modules}\nsys.exit(', '.join(roots & {'tensorflow', 'keras', 'sklearn', 'scipy',"
        " 'skimage', 'matplotlib', 'onnx'}) or 0)\n"
    )
    root = Path(__file__).resolve().parents[3]
    run = subprocess.run(
        [sys.executable, "-c", script, str(tiny_model())],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_real_slices_of_every_source_are_scored(shared_data: Path, tiny_model: TinyModel) -> None:
    predictor = Predictor(tiny_model(preprocessing={"size": 64}))
    paths = [
        next(shared_data.glob(pattern))
        for pattern in ("head_ct/head_ct/1*.png", "ct_ich/images/*/*", "dicom_samples/single/*.dcm")
    ]
    for path in paths:
        try:
            scan = read_series([path])
        except ImageError as err:
            pytest.fail(f"{path.name}: {err}")
        assert 0 <= predictor.predict(scan).probability <= 1
        assert predictor.heatmap(scan).shape == scan.slices[0].pixels.shape


def test_a_step_of_the_preprocessing_that_failed_is_reported_once(tiny_model: TinyModel) -> None:
    model = tiny_model(preprocessing=InputSpec(size=64, skull_stripping=True).to_dict())
    warnings = (
        Predictor(model).predict(Series((with_bright_cell(0.75), with_bright_cell(0.25)))).warnings
    )
    assert warnings.count(NOT_STRIPPED) == 1
