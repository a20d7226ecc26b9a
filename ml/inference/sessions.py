"""ONNX Runtime sessions with validation."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from ml.artifacts.card import FEATURES
from ml.artifacts.onnx_check import require_self_contained
from ml.errors import ArtifactError


def session(graph: bytes, title: str = "The model's graph") -> onnxruntime.InferenceSession:
    """Return a single-threaded ONNX session with low memory use.

    Raises:
        ArtifactError: the graph cannot be loaded; the message begins with `title`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # ONNX Runtime's exceptions have no other common base class
        raise ArtifactError(f"{title} cannot be loaded by ONNX Runtime.") from err


SINGLE_PRECISION = "tensor(float)"  # ONNX Runtime's name for float32


def has_output(session: onnxruntime.InferenceSession, name: str) -> bool:
    """Return whether a graph has an output of that name.

    Raises:
        ArtifactError: it has, but not in single precision.
    """
    outputs = [item for item in session.get_outputs() if item.name == name]
    if any(item.type != SINGLE_PRECISION for item in outputs):
        raise ArtifactError(f"The model's {FEATURES} must use single precision for {name!r}.")
    return bool(outputs)


def require_same_channels(
    features: onnxruntime.InferenceSession, reader: onnxruntime.InferenceSession, name: str
) -> None:
    """Refuse a graph whose input "maps" has another number of channels than the features' output.

    Raises:
        ArtifactError: the numbers differ.
    """
    output = next(item.shape for item in features.get_outputs() if item.name == "maps")
    input_ = next(item.shape for item in reader.get_inputs() if item.name == "maps")
    channels = [shape[-1] for shape in (output, input_) if shape]
    # undeclared dimensions are a name or None
    declared = [size for size in channels if isinstance(size, int)]
    if len(set(declared)) > 1:
        raise ArtifactError(
            f"The model's {name} takes maps of {input_}, but its {FEATURES} gives maps of {output}."
        )


def load_graph(
    path: Path,
    threads: int,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    *,
    keeps_memory: bool = False,
) -> onnxruntime.InferenceSession:
    """Return a session of a model's graph.

    Args:
        path: the graph.
        threads: number of threads per run.
        inputs: names of all inputs, in order.
        outputs: names of required outputs.
        keeps_memory: keep the memory of a run for the next one, which saves a tenth of the time.
            Only for inputs of few different sizes: the memory grows with each new size and never
            shrinks.

    Raises:
        ArtifactError: the graph cannot be loaded, or has other inputs or outputs.
    """
    require_self_contained(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # spinning idle threads would slow down other workers
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = keeps_memory
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as err:  # ONNX Runtime's exceptions have no other common base class
        raise ArtifactError(
            f"The model's {path.name} is not a graph that ONNX Runtime can load."
        ) from err
    names = {item.name for item in session.get_outputs()}
    if tuple(item.name for item in session.get_inputs()) != inputs or not set(outputs) <= names:
        input_names, output_names = (" and ".join(map(repr, names)) for names in (inputs, outputs))
        raise ArtifactError(
            f"The model's {path.name} must take {input_names} and give {output_names}."
        )
    used = [
        item
        for item in (*session.get_inputs(), *session.get_outputs())
        if item.name in inputs + outputs
    ]
    if wrong_type := [item.name for item in used if item.type != SINGLE_PRECISION]:
        raise ArtifactError(
            f"The model's {path.name} must use single precision for {wrong_type[0]!r}."
        )
    return session
