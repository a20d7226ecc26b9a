"""The paper's network: AlexNet (A. Krizhevsky, I. Sutskever, G. Hinton 2012) with a two-class
output.

Five convolutional layers, three overlapping max pooling layers, local response normalization if the
weights were trained with it, two fully connected layers with dropout, softmax. The softmax of two
classes is the logistic function of the difference of their logits, which is the raw decision.
Feature maps of frozen layers, including those of augmented copies, are computed once. The features
graph ends at conv5, so a heat map has its 13 x 13 cells; the last pooling layer and the fully
connected layers are the head. The calibration uses groups of the training part on which the network
was not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import keras
import numpy as np
from onnx import TensorProto, compose, helper, numpy_helper

from ml.checkpoints import load_or_make_arrays, replacing
from ml.evaluation.calibration import Platt
from ml.models.contract import FitTask, Fitted, held_out_of
from ml.models.features import Extractor, augmented_copy, restructuring_of
from ml.models.fine_tuned import initial_weights, normalizes
from ml.models.inner_folds import inner_folds
from ml.networks import autoencoder
from ml.networks.aggregation import aggregate, aggregate_scans, answer_graph, scan_probability
from ml.networks.convolutions import convolved, pooled, set_weights, weights_of
from ml.networks.fine_tuning import balanced_draws
from ml.networks.onnx_graph import model_of, serialized
from ml.networks.training_loop import Batch, run_epochs
from ml.networks.watching import Watch, watched_of
from ml.networks.weights import Weights, layout_of, rounded

SCAN_RULE = aggregate
LAYER = "conv5"
BATCH = 32
MOST_BATCHES = 32  # per epoch, which is at most 1,024 images
AVERAGING = 0.98
CHUNK = 64
# maximum size of the cached feature maps; larger ones are recomputed
MOST_CACHED_BYTES = 3 * 2**30
DENSE = ("fc6", "fc7", "fc8")
MAPS_SHARE, TUNING_SHARE = 0.25, 0.7  # shares of a fit's duration
Report = Callable[[float, Mapping[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """Trained weights: convolutional and fully connected layers, rounded to half precision, as
    float32.
    """

    convolutions: Weights
    dense: Weights


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    learn, inner = (
        (task.train, task.train[:0]) if task.held_out else inner_folds(task, one_split=True)[0]
    )
    size = task.images.shape[1]
    restructuring = restructuring_of(
        task, learn, lambda share, figures: task.report(0.5 * MAPS_SHARE * share, figures)
    )
    start = initial_weights(task, LAYER)
    source = _Source(task, start, restructuring)
    trained = _trained(task, start, source, learn)
    extractor = Extractor(trained.convolutions, LAYER, size, normalizes(task), restructuring)
    features = extractor.build()
    head = head_of(features.output_shape[1:], int(task.settings["fully_connected"]), 0.0, task.seed)
    for name in DENSE:
        head.get_layer(name).set_weights([trained.dense[f"{name}_W"], trained.dense[f"{name}_b"]])

    def decided(maps: np.ndarray) -> np.ndarray:
        scores = np.asarray(head.predict_on_batch(maps), np.float64)
        return np.asarray(scores[:, 1] - scores[:, 0])

    decisions, descriptions = _of_all(task, features, decided)
    held_out = task.held_out or held_out_of(decisions, inner, task.scans)

    def export(platt: Platt, scan_platt: Platt) -> dict[str, bytes]:
        return {
            "features.onnx": extractor.to_onnx(),
            "head.onnx": head_to_onnx(trained.dense, platt, scan_platt, features.output_shape[1:]),
        }

    def reference(
        images: np.ndarray, platt: Platt, scan_platt: Platt
    ) -> tuple[np.ndarray, np.ndarray, float]:
        maps = np.asarray(features.predict_on_batch(np.asarray(images, np.float32)))
        slice_decisions = decided(maps)
        return maps, platt(slice_decisions), scan_probability(slice_decisions, platt, scan_platt)

    frozen = int(task.settings["frozen"])
    return Fitted(
        decisions=decisions,
        scan_decisions=aggregate_scans(decisions, task.scans),
        held_out=held_out,
        chosen={
            "learnt_from": len(learn),
            "calibrated_on": len(held_out.slices),
            "layout": layout_of(start).name,
        },
        export=export,
        reference=reference,
        learned_features=frozen < 5 or restructuring is not None,
        descriptions=descriptions,
    )


def _of_all(
    task: FitTask, features: keras.Model, decided: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return decisions (n,) and descriptions (n, 2c) of all slices of a task."""
    decisions, descriptions = [], []
    for begin in range(0, len(task.images), CHUNK):
        done = begin / len(task.images)
        task.report(MAPS_SHARE + TUNING_SHARE + (1 - MAPS_SHARE - TUNING_SHARE) * done, {})
        maps = np.asarray(
            features.predict_on_batch(np.asarray(task.images[begin : begin + CHUNK], np.float32))
        )
        decisions.append(decided(maps))
        descriptions.append(pooled(maps, "both"))
    return np.concatenate(decisions), np.concatenate(descriptions)


class _Source:
    """The inputs of the trainable part of the network: images, or cached feature maps of the frozen
    layers.
    """

    def __init__(self, task: FitTask, start: Weights, restructuring: Weights | None) -> None:
        self.task, self.frozen = task, int(task.settings["frozen"])
        self.copies = int(task.settings["augmentation"])
        self.restructuring = restructuring
        self.cached: np.ndarray | None = None
        layer = f"conv{self.frozen}" if self.frozen else "conv1"
        self.front = (
            Extractor(start, layer, task.images.shape[1], normalizes(task), restructuring)
            if self.frozen
            else None
        )
        self.shape: tuple[int, ...] = task.images.shape[1:]
        if self.front:
            self.model = self.front.build()
            self.shape = self.model.output_shape[1:]

    def cache(self, report: Report) -> None:
        """Cache the feature maps of the frozen layers for the whole training part, if they are not
        too many.
        """
        task = self.task
        is_restructured = self.restructuring is not None
        n = len(task.images)
        if self.front is None or self.copies * n * int(np.prod(self.shape)) * 2 > MOST_CACHED_BYTES:
            return
        # A hidden file, so that workers omit it from the checkpoint; it is recomputed.
        path = (task.folder if is_restructured else task.shared) / ".maps.npy"
        wanted = task.train if is_restructured else np.flatnonzero(task.labels >= 0)
        if not path.is_file():
            with replacing(path) as unfinished:
                maps = np.lib.format.open_memmap(
                    unfinished, mode="w+", dtype=np.float16, shape=(self.copies, n, *self.shape)
                )
                for number in range(self.copies):
                    for begin in range(0, len(wanted), CHUNK):
                        report((number + begin / len(wanted)) / self.copies, {})
                        at = wanted[begin : begin + CHUNK]
                        maps[number, at] = self._computed(at, np.full(len(at), number))
                maps.flush()
        self.cached = np.asarray(np.load(path, mmap_mode="r"))

    def inputs(self, at: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return the inputs (b, ...) of the copies `numbers` (b,) of the images at `at` (b,),
        float32.
        """
        if self.cached is None:
            return self._computed(at, numbers)
        return np.stack(
            [self.cached[number, position] for position, number in zip(at, numbers, strict=True)]
        ).astype(np.float32)

    def _computed(self, at: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        pictures = np.stack(
            [
                augmented_copy(self.task, int(p), int(c), int(p))
                for p, c in zip(at, numbers, strict=True)
            ]
        )
        return pictures if self.front is None else np.asarray(self.model.predict_on_batch(pictures))


def head_of(maps: tuple[int, ...], width: int, dropout: float, seed: int) -> keras.Model:
    """Return the last pooling layer and the fully connected layers: maps (n, h, w, c) -> logits of
    the two classes (n, 2).
    """
    layers = keras.layers
    inputs = keras.Input(maps, name="maps")
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(3, 2, name="pool5")(inputs))
    for number, name in enumerate(DENSE[:2]):
        start = keras.initializers.HeNormal(seed=seed + number)
        x = layers.Dense(width, activation="relu", kernel_initializer=start, name=name)(
            layers.Dropout(dropout, seed=seed + number)(x)
        )
    start = keras.initializers.GlorotUniform(seed=seed + 2)
    return keras.Model(
        inputs,
        layers.Dense(2, kernel_initializer=start, dtype="float32", name=DENSE[2])(x),
        name="head",
    )


def _trained(task: FitTask, start: Weights, source: _Source, learn: np.ndarray) -> Trained:
    path, state = task.folder / "trained.npz", task.folder / "state.npz"

    def learn_anew() -> Weights:
        source.cache(lambda share, figures: task.report((0.5 + 0.5 * share) * MAPS_SHARE, figures))
        keras.utils.set_random_seed(task.seed)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(
            "mixed_bfloat16" if task.settings["precision"] == "bfloat16" else "float32"
        )
        try:
            network, back = _network(task, start, source)
        finally:
            keras.config.set_dtype_policy(before)
        batches = int(np.clip(4 * len(learn) // BATCH, 1, MOST_BATCHES))

        def draw(seed: int) -> Iterator[Batch]:
            random = np.random.default_rng(seed)
            for _ in range(batches):
                at = learn[balanced_draws(task.labels[learn], task.sources[learn], BATCH, random)]
                yield source.inputs(at, random.integers(source.copies, size=BATCH)), task.labels[at]

        run_epochs(
            network,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            epochs=int(task.settings["epochs"]),
            batches=batches,
            learning_rate=float(task.settings["learning_rate"]),
            averaging=AVERAGING,
            seed=task.seed,
            draw=draw,
            state=state,
            report=lambda share, figures: task.report(MAPS_SHARE + share * TUNING_SHARE, figures),
            watch=_watch(task, source, np.setdiff1d(task.train, learn), batches),
        )
        head = network.get_layer("head")
        trained_weights = weights_of(back, start) if back is not None else dict(start)
        for name in DENSE:
            trained_weights[f"{name}_W"], trained_weights[f"{name}_b"] = (
                np.asarray(values) for values in head.get_layer(name).get_weights()
            )
        return {name: values.astype(np.float16) for name, values in trained_weights.items()}

    arrays = load_or_make_arrays(path, learn_anew)
    state.unlink(missing_ok=True)
    whole = {name: values.astype(np.float32) for name, values in arrays.items()}
    return Trained(
        rounded({name: values for name, values in whole.items() if not name.startswith("fc")}),
        {name: values for name, values in whole.items() if name.startswith("fc")},
    )


def _watch(task: FitTask, source: _Source, held_back: np.ndarray, batches: int) -> Watch | None:
    """Return the data that the training is monitored on; None if the held-out slices do not include
    both classes.
    """
    at = watched_of(task.labels, held_back, batches * BATCH, BATCH)
    if not len(at):
        return None
    parts = [at[first : first + BATCH] for first in range(0, len(at), BATCH)]
    unvaried = [source.inputs(part, np.zeros(len(part), np.int64)) for part in parts]
    return Watch(
        [(inputs, task.labels[part]) for inputs, part in zip(unvaried, parts, strict=True)],
        lambda batch, outputs: (batch[1], outputs[:, 1] - outputs[:, 0]),
    )


def _network(
    task: FitTask, start: Weights, source: _Source
) -> tuple[keras.Model, keras.Model | None]:
    """Return the trainable network, from the inputs of `source` to logits, and its trainable
    convolutional part, if any.
    """
    inputs = keras.Input(source.shape, name="inputs")
    names = [layer.name for layer in layout_of(start).convolutions][source.frozen :]
    twice = source.restructuring is not None
    back: keras.Model | None = None
    maps = inputs
    if source.frozen == 0:
        size = task.images.shape[1]
        back = Extractor(start, LAYER, size, normalizes(task), None).build()
        maps = back(inputs)
        if source.restructuring is not None:
            drawn_again = autoencoder.build(source.restructuring, size)
            drawn_again.trainable = False
            maps = keras.layers.Concatenate()([maps, back(drawn_again(inputs))])
    elif names:
        channels = source.shape[-1] // (2 if twice else 1)
        of_part = keras.Input((*source.shape[:-1], channels))
        back = keras.Model(
            of_part,
            convolved(of_part, start, names, normalizes(task)),
            name="learning_convolutions",
        )
        set_weights(back, start)
        # Image and reconstruction go through the same convolutions.
        parts = keras.ops.split(inputs, 2, axis=-1) if twice else [inputs]
        maps_of_parts = [back(part) for part in parts]
        maps = keras.layers.Concatenate()(maps_of_parts) if twice else maps_of_parts[0]
    head = head_of(
        maps.shape[1:],
        int(task.settings["fully_connected"]),
        float(task.settings["dropout"]),
        task.seed,
    )
    return keras.Model(inputs, head(maps)), back


def head_to_onnx(dense: Weights, platt: Platt, scan_platt: Platt, maps: tuple[int, ...]) -> bytes:
    """Return the head graph: "maps" (N, h, w, c) -> "slice_probability" (N,), "scan_probability"
    (1,); weights in half precision.
    """
    height, width, channels = maps
    nodes = [
        helper.make_node("Transpose", ["maps"], ["maps_by_channel"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "MaxPool",
            ["maps_by_channel"],
            ["pool5_by_channel"],
            kernel_shape=[3, 3],
            strides=[2, 2],
        ),
        helper.make_node("Transpose", ["pool5_by_channel"], ["pool5"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["pool5", "one_line"], ["flat_maps"]),
    ]
    constants = [numpy_helper.from_array(np.array([-1, len(dense["fc6_W"])], np.int64), "one_line")]
    x = "flat_maps"
    for name in DENSE:
        for key in (f"{name}_W", f"{name}_b"):
            constants.append(numpy_helper.from_array(dense[key].astype(np.float16), key))
            nodes.append(helper.make_node("Cast", [key], [f"{key}_float"], to=TensorProto.FLOAT))
        nodes.append(
            helper.make_node("Gemm", [x, f"{name}_W_float", f"{name}_b_float"], [f"{name}_linear"])
        )
        x = f"{name}_linear"
        if name != DENSE[-1]:
            nodes.append(helper.make_node("Relu", [x], [name]))
            x = name
    constants.append(
        numpy_helper.from_array(np.array([[-1.0], [1.0]], np.float32), "second_less_first")
    )
    nodes.append(helper.make_node("MatMul", [x, "second_less_first"], ["softmax_decision"]))
    layers = model_of(
        nodes,
        "fully_connected",
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", height, width, channels])],
        [helper.make_tensor_value_info("softmax_decision", TensorProto.FLOAT, ["N", 1])],
        constants,
    )
    whole = compose.merge_models(
        layers, answer_graph(platt, scan_platt), io_map=[("softmax_decision", "decision")]
    )
    return serialized(whole)
