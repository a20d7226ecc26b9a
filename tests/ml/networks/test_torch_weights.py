"""PyTorch's files of weights, written by hand: what they hold is read, and what they ask for is not
done.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ml.errors import ArtifactError
from ml.networks.torch_weights import MAGIC_NUMBER, PROTOCOL, read_tensors

TENSORS = {
    "features.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "features.0.bias": np.array([0.5, -0.5], np.float32),
}


def opcodes(tensors: dict[str, np.ndarray], hook: bytes = b"") -> bytes:
    """Return the pickle of an ordered dictionary of tensors, opcode by opcode (protocol 2), as
    `torch.save` writes it.
    """

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def line(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    result = b"\x80\x02" + hook + b"ccollections\nOrderedDict\n)R("
    for key, (name, values) in enumerate(tensors.items()):
        strides = tuple(step // values.itemsize for step in values.strides)
        storage = (
            b"("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text(str(key))
            + text("cpu")
            + number(values.size)
            + b"tQ"
        )
        arguments = (
            b"("
            + storage
            + number(0)
            + line(values.shape)
            + line(strides)
            + b"\x89"
            + b"ccollections\nOrderedDict\n)R"
            + b"t"
        )
        result += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return result + b"u."


def write_archive(path: Path, pickled: bytes, tensors: dict[str, np.ndarray]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled)
        archive.writestr("weights/byteorder", "little")
        for key, values in enumerate(tensors.values()):
            archive.writestr(f"weights/data/{key}", values.tobytes())
    return path


def write_stream(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    facts = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}
    with path.open("wb") as file:
        for value in (MAGIC_NUMBER, PROTOCOL, facts):
            pickle.dump(value, file, 2)
        file.write(opcodes(tensors))
        pickle.dump([str(key) for key in range(len(tensors))], file, 2)
        for values in tensors.values():
            file.write(struct.pack("<q", values.size) + values.tobytes())
    return path


def test_the_tensors_of_an_archive_are_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "weights.pth", opcodes(TENSORS), TENSORS)
    result = read_tensors(path, [*TENSORS, "classifier.6.weight"])
    assert set(result) == set(TENSORS)
    assert all(
        np.array_equal(result[name], values) and result[name].dtype == np.float32
        for name, values in TENSORS.items()
    )


def test_the_tensors_of_the_older_layout_are_read(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "weights.pth", TENSORS)
    assert np.array_equal(
        read_tensors(path, ["features.0.bias"])["features.0.bias"], TENSORS["features.0.bias"]
    )
    assert np.array_equal(
        read_tensors(path, list(TENSORS))["features.0.weight"], TENSORS["features.0.weight"]
    )


def test_strides_are_followed(tmp_path: Path) -> None:
    turned = {"features.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    path = write_archive(
        tmp_path / "weights.pth", opcodes(turned), {"0": np.arange(6, dtype=np.float32)}
    )
    assert np.array_equal(
        read_tensors(path, list(turned))["features.0.weight"], turned["features.0.weight"]
    )


@pytest.mark.parametrize(
    "call",
    [
        b"cos\nsystem\n",
        b"cposix\nsystem\n",
        b"cbuiltins\neval\n",
        b"cbuiltins\ngetattr\n",
        b"ctorch\nload\n",
    ],
)
def test_a_hostile_pickle_is_refused_and_not_run(call: bytes, tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    command = f"touch {trace}"
    hook = call + b"(X" + struct.pack("<I", len(command)) + command.encode() + b"tR0"
    path = write_archive(tmp_path / "hostile.pth", opcodes(TENSORS, hook), TENSORS)
    with pytest.raises(ArtifactError, match="which is not part of a tensor; it is not opened"):
        read_tensors(path, list(TENSORS))
    assert not trace.exists()


def test_a_hostile_stream_is_refused_and_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'was-run'}",)

    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(), 2))
    with pytest.raises(ArtifactError, match="it is not opened"):
        read_tensors(tmp_path / "hostile.pth", list(TENSORS))
    assert not (tmp_path / "was-run").exists()


def test_what_is_no_such_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    for name, content in {
        "text": b"not a pickle",
        "empty": b"",
        "numbers": pickle.dumps([1, 2]),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{name} is not a readable PyTorch weights file"):
            read_tensors(tmp_path / name, list(TENSORS))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "zip").write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match="zip is not a readable PyTorch weights file"):
        read_tensors(tmp_path / "zip", list(TENSORS))


def test_a_storage_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    short = {
        "features.0.weight": TENSORS["features.0.weight"].reshape(-1)[:5],
        "features.0.bias": TENSORS["features.0.bias"],
    }
    path = write_archive(tmp_path / "short.pth", opcodes(TENSORS), short)
    with pytest.raises(ArtifactError, match=r"short.pth is not a readable PyTorch weights file"):
        read_tensors(path, list(TENSORS))
