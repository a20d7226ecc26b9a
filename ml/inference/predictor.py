"""Prediction with a trained model, using ONNX Runtime on the CPU and no training libraries."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy as shallow_copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime

from ml.artifacts.card import FEATURES, HEAD, OUTLINE, TYPES
from ml.artifacts.folder import read_card
from ml.errors import ArtifactError
from ml.inference.first_slices import look_first
from ml.inference.gate import REFUSED_FROM, checked_slices, gate
from ml.inference.heat_maps import occlusion, place
from ml.inference.outlines import NOT_FOUND, MapFunction, Outlines, outlines_of
from ml.inference.sessions import has_output, load_graph, require_same_channels
from ml.preprocessing.model_input import Frame, InputSpec, to_input
from ml.scans.slabs import Slabs
from ml.scans.slices import FloatArray, Series, Slice
from ml.verdict import State, state_of

T = TypeVar("T")
R = TypeVar("R")
NOT_HEAD_CT = (
    "This does not look like a head CT; the model's output is meaningless for other images."
)
SLICE_ABOVE_THRESHOLD = (
    "A slice on its own is above the threshold for single slices, although the scan as a whole is"
    " below its threshold: see the slices to look at first."
)
NO_PROBABILITIES = "The model did not output a probability for each slice and for the scan."
NEIGHBORS = 4
"""Neighboring slices on each side that are used for the heat map of a series model. More distant
ones do not matter (on six scans of ct_ich, the correlation with heat maps from all slices is at
least .996, with the same peak), and 200 slices would take a minute.
"""


class Stopped(Exception):
    """A prediction was stopped; it has no result."""


@dataclass(frozen=True)
class ScanResult:
    """The prediction for one scan.

    Attributes:
        probability: calibrated probability of hemorrhage in the scan, 0..1.
        threshold: the model's threshold for a single slice or for a scan of several; `positive` is
            probability >= threshold.
        uncertain: the probability is in the corresponding inconclusive band.
        slice_probabilities: of each slice, in the order of the series; thin slices have the
            probability of their slab (`ml.scans.slabs`).
        warnings: of the series, then the assumptions of the model.
        doubts: the subset of the warnings that cast doubt on the result, not only on the images.
        not_head_ct: score of the check "not a head CT", 0..1, independent of the model; 0 if not
            checked.
        refused: the scan failed that check, so the prediction is meaningless; a warning says so.
        first_slices: indices of up to five slices to view first, by descending priority
            (`ml.inference.first_slices.look_first`).
        types: the probability of each predicted type of hemorrhage, by name; at most that of
            hemorrhage.
        slice_types: the same for each slice.
        outlines: of the hemorrhage, if the model gives them, in slices at or above the threshold
            for slices, or else in the most probable one; empty if the state is "not found".
    """

    probability: float
    threshold: float
    positive: bool
    uncertain: bool
    slice_probabilities: tuple[float, ...]
    warnings: tuple[str, ...]
    not_head_ct: float = 0.0
    refused: bool = False
    first_slices: tuple[int, ...] = ()
    types: Mapping[str, float] = field(default_factory=dict)
    slice_types: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    outlines: Outlines = field(default_factory=Outlines)
    doubts: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """Whether a hemorrhage is suspected or not found, or the result is inconclusive."""
        return state_of(positive=self.positive, uncertain=self.uncertain)


@dataclass(frozen=True)
class _SlabFeatures:
    """The output of the convolutions for one slab.

    Attributes:
        frame: position of the input in the slab.
        maps: (h, w, c).
        outlined: probability of hemorrhage at each position (m, m), None for a model without
            outlines.
        not_head_ct: score of the check "not a head CT", None if this slab is not checked.
    """

    frame: Frame
    maps: FloatArray
    outlined: FloatArray | None
    not_head_ct: float | None


@dataclass
class _ScanFeatures:
    """The output of the convolutions for the slabs of one scan so far.

    Attributes:
        maps: (n, h, w, c), allocated at once: small arrays that survive between the temporary ones
            of the convolutions would fragment the heap, which took 370 MB more for 200 slices.
        outlined: (n, m, m), None for a model without outlines.
        frames: of the slabs that are done.
        not_head_ct: scores of the slabs that were checked.
    """

    maps: FloatArray
    outlined: FloatArray | None
    frames: list[Frame] = field(default_factory=list)
    not_head_ct: list[float] = field(default_factory=list)

    @classmethod
    def for_slabs(cls, count: int, like: _SlabFeatures) -> _ScanFeatures:
        """Allocate memory for `count` slabs with outputs of the shapes of this one."""
        outlined = like.outlined
        return cls(
            np.empty((count, *like.maps.shape), np.float32),
            None if outlined is None else np.empty((count, *outlined.shape), np.float32),
        )

    def add(self, slab: _SlabFeatures) -> None:
        """Store the output for the next slab."""
        index = len(self.frames)
        self.maps[index] = slab.maps
        if self.outlined is not None:
            self.outlined[index] = slab.outlined
        self.frames.append(slab.frame)
        if slab.not_head_ct is not None:
            self.not_head_ct.append(slab.not_head_ct)

    @property
    def is_complete(self) -> bool:
        return len(self.frames) == len(self.maps)


class Predictor:
    """A loaded model. Not to be shared across a fork: create it in the child process.

    Args:
        model_dir: a model folder, see `ml.artifacts.folder`; it is read again the first time that
            several threads are to process several slices.
        threads: number of threads. Each processes one slice at a time, which takes a tenth less CPU
            time than several threads sharing a slice, as they do if there is only one.
        checks_head_ct: False skips the check whether a scan looks like a head CT.

    Raises:
        ArtifactError: the folder is incomplete or altered, or its graphs are not what the card
            promises; or `ml.inference.gate` is unusable.

    Example:
        A phantom stands in for a patient; a series is the list of its files.

        >>> from pathlib import Path
        >>> from ml.catalogue import STARTER_DIR
        >>> from ml.inference.predictor import Predictor
        >>> from ml.scans.phantoms import phantom, write_dicom
        >>> from ml.scans.read import read_series
        >>> write_dicom(phantom(1, hemorrhage=True), Path("head.dcm"))
        >>> predictor = Predictor(STARTER_DIR)
        >>> result = predictor.predict(read_series([Path("head.dcm")]))
        >>> result.positive, result.uncertain
        (True, False)
        >>> result.probability == result.slice_probabilities[0] > result.threshold
        True
    """

    def __init__(self, model_dir: Path, threads: int = 1, checks_head_ct: bool = True) -> None:
        self._threads = threads
        self._gate = gate() if checks_head_ct else None
        self.card = read_card(model_dir)
        try:
            self.spec = InputSpec.from_dict(self.card.preprocessing)
        except ValueError as err:
            raise ArtifactError(str(err)) from err
        # A series has several slices, which threads process one by one.
        self._features = self._load_features(
            model_dir, 1 if self.card.reads == "series" else threads
        )
        # A session with one thread per slice, for several slices of a slice model. It is in a list,
        # which `with_thresholds` shares, and is loaded only when needed: an idle worker has
        # predicted only one slice of a phantom.
        self._features_of_many: list[onnxruntime.InferenceSession] = []
        self._model_dir = model_dir
        probabilities = ("slice_probability", "scan_probability")
        self._head = load_graph(model_dir / HEAD, threads, ("maps",), probabilities)
        self._types: onnxruntime.InferenceSession | None = None
        if self.card.reported_types:
            if TYPES not in self.card.files:
                raise ArtifactError(
                    f"The model's card lists types of hemorrhage, but there is no {TYPES}."
                )
            self._types = load_graph(
                model_dir / TYPES, threads, ("maps", *probabilities), ("slice_types", "scan_types")
            )
        self.gives_outlines = has_output(self._features, OUTLINE)
        for name, graph in ((HEAD, self._head), (TYPES, self._types)):
            if graph is not None:
                require_same_channels(self._features, graph, name)

    def with_thresholds(self, of_slices: float | None, of_scans: float | None) -> Predictor:
        """Return a predictor of the same model with other thresholds, which shares its graphs; see
        `ml.artifacts.card.Card.with_thresholds`.
        """
        if of_slices is None and of_scans is None:
            return self
        other = shallow_copy(self)
        other.card = self.card.with_thresholds(of_slices, of_scans)
        return other

    def predict(
        self,
        series: Series,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> ScanResult:
        """Return the result of one scan; see `predict_many`."""
        return self.predict_many([series], on_progress, should_stop)[0]

    def predict_many(
        self,
        series: Sequence[Series],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[ScanResult]:
        """Return the results of several scans, in their order.

        Threads process the slices of all scans one by one; the head runs once per scan. Only the
        maps of incomplete scans are held in memory. Thin slices are averaged into slabs
        (`ml.scans.slabs`).

        Args:
            series: the scans.
            on_progress: called after each slab with the number of slices done and in total.
            should_stop: called before each slab; True stops.

        Raises:
            ValueError: a scan has no slices.
            ArtifactError: the model's output is not a probability.
            Stopped: `should_stop` returned True.
        """
        if any(not scan.slices for scan in series):
            raise ValueError("A scan without slices cannot be predicted.")
        slabs_of = [Slabs(scan) for scan in series]
        jobs = [
            (scan_index, slab)
            for scan_index, slabs in enumerate(slabs_of)
            for slab in range(len(slabs))
        ]
        done, total = 0, sum(len(scan.slices) for scan in series)
        features: dict[int, _ScanFeatures] = {}
        results: list[ScanResult] = []
        checked = [checked_slices(len(slabs)) for slabs in slabs_of]
        convolutions = self._convolutions_for(len(jobs))

        def compute(job: tuple[int, int]) -> _SlabFeatures:
            scan_index, slab = job
            return self._compute(
                slabs_of[scan_index][slab], convolutions, slab in checked[scan_index]
            )

        with ThreadPoolExecutor(self._threads) as threads:
            computed = _ahead(threads, compute, jobs, self._threads + 1)
            for (scan_index, slab), output in zip(
                _unless(should_stop, jobs), computed, strict=True
            ):
                slabs = slabs_of[scan_index]
                if scan_index not in features:
                    features[scan_index] = _ScanFeatures.for_slabs(len(slabs), output)
                features[scan_index].add(output)
                done += slabs.size_of(slab)
                if features[scan_index].is_complete:
                    results.append(
                        self._result(
                            series[scan_index], slabs, features.pop(scan_index), threads.map
                        )
                    )
                on_progress(done, total)
        return results

    @staticmethod
    def _load_features(model_dir: Path, threads: int) -> onnxruntime.InferenceSession:
        # Memory is kept if several slices are processed: all runs have the same size.
        return load_graph(
            model_dir / FEATURES, threads, ("images",), ("maps",), keeps_memory=threads == 1
        )

    def _convolutions_for(self, slabs: int) -> onnxruntime.InferenceSession:
        if slabs == 1 or self._threads == 1 or self.card.reads == "series":
            return self._features
        if not self._features_of_many:
            self._features_of_many.append(self._load_features(self._model_dir, 1))
        return self._features_of_many[0]

    def _compute(
        self, slab: Slice, convolutions: onnxruntime.InferenceSession, is_checked: bool
    ) -> _SlabFeatures:
        pixels, frame = to_input(slab, self.spec)
        maps, outlined = self._maps_and_outlines(convolutions, pixels)
        score = self._gate.score(slab) if self._gate and is_checked else None
        return _SlabFeatures(frame, maps, outlined, score)

    def heatmap(self, series: Series, index: int = 0) -> FloatArray:
        """Return the heat map of one slice; see `heatmaps`."""
        return self.heatmaps(series, [index])[0]

    def heatmaps(
        self,
        series: Series,
        indices: Sequence[int],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[FloatArray]:
        """Return the heat maps of some slices of a scan, in the order of the indices.

        Each is float32 (H, W) in the geometry of the original slice, 0..1, and 0 outside the
        model's frame. It is occlusion in feature space (see `ml.inference.heat_maps`). A slice
        model uses that slice alone; a series model uses it with its four nearest neighbors on each
        side. The convolutions run once per required slice, and thin slices of a slab share its heat
        map. `should_stop` is called before each slab is computed and before each heat map is drawn.

        Raises:
            IndexError: an index is out of range.
            Stopped: `should_stop` returned True.
        """
        for index in indices:
            if not 0 <= index < len(series.slices):
                raise IndexError(
                    f"The scan has {len(series.slices)} slices; there is no slice {index}."
                )
        if not indices:
            return []
        slabs = Slabs(series)
        wanted = sorted({slabs.number_of(index) for index in indices})
        context = {number: self._context_slabs(number, len(slabs)) for number in wanted}
        needed = sorted(set().union(*context.values()))
        with ThreadPoolExecutor(self._threads) as threads:
            computed = _ahead(
                threads,
                lambda number: self._maps(to_input(slabs[number], self.spec)[0]),
                _unless(should_stop, needed),
                self._threads + 1,
            )
            maps = dict(zip(needed, computed, strict=True))
        heat_of: dict[int, FloatArray] = {}
        frame_of: dict[int, Frame] = {}
        inputs = self._inputs(slabs, wanted)
        for number, (pixels, frame) in zip(_unless(should_stop, wanted), inputs, strict=True):
            score = self._score_in_context(
                np.stack([maps[other] for other in context[number]]), context[number].index(number)
            )
            heat_of[number] = occlusion(maps[number], score, pixels)
            frame_of[number] = frame
        heatmaps = []
        for index in indices:
            number = slabs.number_of(index)
            shape = series.slices[index].pixels.shape
            heatmaps.append(place(heat_of[number], frame_of[number], shape))
        return heatmaps

    def _context_slabs(self, number: int, count: int) -> range:
        """Return the indices of the slabs that the heat map of slab `number` depends on."""
        reach = NEIGHBORS if self.card.reads == "series" else 0
        return range(max(number - reach, 0), min(number + reach + 1, count))

    def _inputs(self, slabs: Slabs, numbers: Sequence[int]) -> list[tuple[FloatArray, Frame]]:
        return [to_input(slabs[number], self.spec) for number in numbers]

    def _score_in_context(
        self, context: FloatArray, index: int
    ) -> Callable[[FloatArray], FloatArray]:
        """Return a function from copies of one slab's maps to its probabilities; the slab has
        position `index` among the maps of its neighbors (n, h, w, c).
        """
        if self.card.reads == "slice":
            return lambda copies: self._run_head(copies)[0]

        def score(copies: FloatArray) -> FloatArray:
            probabilities = np.empty(len(copies), np.float32)
            for number, copy in enumerate(copies):
                context[index] = copy
                probabilities[number] = self._run_head(context)[0][index]
            return probabilities

        return score

    def _maps(self, pixels: FloatArray) -> FloatArray:
        """Return the maps (h, w, c) of an input (size, size, 1), without computing outlines."""
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        (maps,) = self._features.run(["maps"], {"images": pixels[np.newaxis]}, options)
        return np.asarray(maps[0], np.float32)

    def _maps_and_outlines(
        self, convolutions: onnxruntime.InferenceSession, pixels: FloatArray
    ) -> tuple[FloatArray, FloatArray | None]:
        """Return the maps (h, w, c) of an input (size, size, 1) and the probability of hemorrhage
        at each position (m, m), None for a model without outlines.
        """
        images = {"images": pixels[np.newaxis]}
        if not self.gives_outlines:
            (maps,) = convolutions.run(["maps"], images)
            return np.asarray(maps[0], np.float32), None
        maps, outlined = convolutions.run(["maps", OUTLINE], images)
        if outlined.ndim != 3 or len(outlined) != 1 or not outlined.size:
            raise ArtifactError(NO_PROBABILITIES)
        return np.asarray(maps[0], np.float32), _probabilities(outlined[0])

    def _run_head(self, maps: FloatArray) -> tuple[FloatArray, float]:
        """Return the probability of each slice (n,) and of the scan, from the maps (n, h, w, c) of
        one scan.
        """
        slices, scan = self._head.run(["slice_probability", "scan_probability"], {"maps": maps})
        if slices.shape != (len(maps),) or scan.shape != (1,):
            raise ArtifactError(NO_PROBABILITIES)
        return _probabilities(slices), float(_probabilities(scan)[0])

    def _types_of(
        self, maps: FloatArray, slices: FloatArray, probability: float
    ) -> tuple[FloatArray, FloatArray]:
        """Return the probability of each type in each slice (n, k) and in the scan (k,), given
        those of hemorrhage.
        """
        count = len(self.card.reported_types)
        if self._types is None:
            return np.zeros((len(maps), 0), np.float32), np.zeros(0, np.float32)
        inputs = {
            "maps": maps,
            "slice_probability": slices,
            "scan_probability": np.array([probability], np.float32),
        }
        of_slices, of_scan = self._types.run(["slice_types", "scan_types"], inputs)
        if of_slices.shape != (len(maps), count) or of_scan.shape != (count,):
            raise ArtifactError(NO_PROBABILITIES)
        return _probabilities(of_slices), _probabilities(of_scan)

    def _result(
        self, series: Series, slabs: Slabs, features: _ScanFeatures, map_: MapFunction
    ) -> ScanResult:
        maps = features.maps
        of_slices, probability = self._run_head(maps)
        if len(of_slices) == 1:
            probability = float(of_slices[0])
        slice_types, types = self._types_of(maps, of_slices, probability)
        slice_types = slabs.per_slice(slice_types)
        threshold, low, high = self.card.operating_point(len(of_slices))
        positive, uncertain = probability >= threshold, low <= probability < high
        notes = itertools.chain.from_iterable(frame.notes for frame in features.frames)
        doubts = []
        # expected in the lowest and highest slices of a series
        if self.spec.crop_to_head and not any(frame.shows_head for frame in features.frames):
            doubts.append("No head was found in the image, so the model used the whole image.")
        not_head_ct = float(np.median(features.not_head_ct)) if self._gate else 0.0
        if refused := not_head_ct >= REFUSED_FROM:
            doubts.append(NOT_HEAD_CT)
        state = state_of(positive=positive, uncertain=uncertain)
        if state == "not found" and len(of_slices) > 1 and of_slices.max() >= self.card.threshold:
            doubts.append(SLICE_ABOVE_THRESHOLD)
        return ScanResult(
            probability=probability,
            threshold=threshold,
            positive=positive,
            uncertain=uncertain,
            slice_probabilities=tuple(float(value) for value in slabs.per_slice(of_slices)),
            warnings=tuple(dict.fromkeys([*series.warnings, *notes, *doubts])),
            doubts=tuple(doubts),
            not_head_ct=not_head_ct,
            refused=refused,
            first_slices=tuple(
                slabs.middle_of(number) for number in look_first(of_slices, self.card.threshold)
            ),
            types=dict(zip(self.card.reported_types, types.tolist(), strict=True)),
            slice_types={
                name: tuple(slice_types[:, number].tolist())
                for number, name in enumerate(self.card.reported_types)
            },
            outlines=self._outlines(series, slabs, features, of_slices, state, map_),
        )

    def _outlines(
        self,
        series: Series,
        slabs: Slabs,
        features: _ScanFeatures,
        of_slices: FloatArray,
        state: State,
        map_: MapFunction,
    ) -> Outlines:
        if features.outlined is None:
            return Outlines()
        if state == "not found":
            return Outlines(no_volume_because=NOT_FOUND)
        # A scan may be suspected or inconclusive although none of its slices is: its threshold is
        # lower.
        lowest = min(self.card.threshold, float(of_slices.max()))
        shown = [
            outlined if probability >= lowest else None
            for outlined, probability in zip(features.outlined, of_slices, strict=True)
        ]
        # The threads have other slices to process, and a single one would wait behind them.
        return outlines_of(series, slabs, shown, features.frames, map_ if len(shown) > 1 else map)


def _ahead(
    threads: ThreadPoolExecutor, compute: Callable[[T], R], items: Iterable[T], most: int
) -> Iterator[R]:
    """Yield what `compute` returns for each item, in order; threads compute up to `most` items
    meanwhile.

    `Executor.map` would compute all of them and hold them in memory.
    """
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(threads.submit(compute, item))
        if len(pending) > most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _unless(should_stop: Callable[[], bool], items: Iterable[T]) -> Iterator[T]:
    """Yield these items, checking before each whether to stop.

    Raises:
        Stopped: `should_stop` returned True.
    """
    for item in items:
        if should_stop():
            raise Stopped("The prediction was stopped.")
        yield item


def _probabilities(values: FloatArray) -> FloatArray:
    # Tolerates rounding errors of 5e-7; NaN fails both comparisons.
    if not ((values >= -1e-6) & (values <= 1 + 1e-6)).all():
        raise ArtifactError(NO_PROBABILITIES)
    return np.clip(np.asarray(values, np.float32), 0, 1)
