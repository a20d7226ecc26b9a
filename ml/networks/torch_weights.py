"""Read PyTorch weight files without executing code in them.

Such a file consists of raw numbers and a pickle that describes them, and a pickle can call
arbitrary code. Here an unpickler maps five known names to inert descriptions and refuses all
others. Two layouts exist: a ZIP archive (`data.pkl` and one file for each storage; PyTorch 1.6 and
later) and, before it, one stream (magic number, protocol, system information, the pickle, the
storages' names, and the storages). See `torch/serialization.py` for both.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ml.errors import ArtifactError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MOST_NUMBERS = 2**28  # maximum numbers per storage: 1 GiB in single precision
MOST_PICKLE_BYTES = 2**22
KINDS = {"FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "LongStorage": "<i8"}
# Exceptions raised for an invalid pickle or one that does not describe tensors.
UNREADABLE = (
    *(
        pickle.UnpicklingError,
        EOFError,
        zipfile.BadZipFile,
        OSError,
        MemoryError,
        RecursionError,
        NotImplementedError,
    ),
    *(ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError),
)


@dataclass(frozen=True)
class _Kind:
    dtype: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    numbers: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the named tensors of a weights file (a `state_dict`), float32, omitting missing names.

    Raises:
        ArtifactError: it is not such a file, or it refers to code.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path, wanted)
        with path.open("rb") as file:
            return _read_stream(file, path.stat().st_size, wanted)
    except ArtifactError:
        raise
    except UNREADABLE as err:
        raise ArtifactError(f"{path.name} is not a readable PyTorch weights file.") from err


class _Inert(pickle.Unpickler):
    """Reads a pickle of tensors as descriptions without importing anything. `bytes_each` collects
    the item size of each storage.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.bytes_each: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the description for a name in the pickle."""
        if module == "torch" and name in KINDS:
            return _Kind(KINDS[name])
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _described,
            ("torch._utils", "_rebuild_tensor"): _described,
            ("torch._utils", "_rebuild_parameter"): _unwrapped,
        }
        if (module, name) not in known:
            raise ArtifactError(
                f"The weights file refers to {module[:40]}.{name[:40]}, which is not part of a"
                " tensor; it is not opened."
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the description of a storage."""
        word, kind, key, _, numbers = pid[:5]
        if (
            word != "storage"
            or not isinstance(kind, _Kind)
            or not 0 <= int(numbers) <= MOST_NUMBERS
        ):
            raise ValueError("not a storage of plain numbers")
        self.bytes_each[str(key)] = np.dtype(kind.dtype).itemsize
        return _Storage(kind.dtype, str(key), int(numbers))


class _Numbers(pickle.Unpickler):
    """Reads a pickle of numbers, strings, lists and dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every name."""
        raise ArtifactError(
            f"The weights file refers to {module[:40]}.{name[:40]}, which is not part of a tensor;"
            " it is not opened."
        )


def _described(
    storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any
) -> _Tensor:
    tensor = _Tensor(
        storage,
        int(offset),
        tuple(int(side) for side in shape),
        tuple(int(step) for step in strides),
    )
    last = tensor.offset + sum(
        (side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True)
    )
    if (
        tensor.offset < 0
        or min((0, *tensor.strides)) < 0
        or min((1, *tensor.shape)) < 1
        or not last < storage.numbers
    ):
        raise ValueError("a tensor reaches beyond its storage")
    return tensor


def _unwrapped(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


def _read_archive(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        name = next(
            (
                name
                for name in archive.namelist()
                if name.count("/") == 1 and name.endswith("/data.pkl")
            ),
            None,
        )
        if name is None:
            raise ValueError("not a pickle of tensors")
        root = name.removesuffix("data.pkl")
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise ValueError("numbers are not little-endian")
        if archive.getinfo(name).file_size > MOST_PICKLE_BYTES:
            raise ValueError("the pickle is too large")
        tensors = _named(_Inert(io.BytesIO(archive.read(name))).load(), wanted)

        def storage_bytes(storage: _Storage) -> bytes:
            size = storage.numbers * np.dtype(storage.dtype).itemsize
            if archive.getinfo(f"{root}data/{storage.key}").file_size < size:
                raise ValueError("a storage is cut short")
            with archive.open(f"{root}data/{storage.key}") as file:
                return file.read(size)

        return {
            name: _numbers_of(tensor, storage_bytes(tensor.storage))
            for name, tensor in tensors.items()
        }


def _read_stream(file: IO[bytes], size: int, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    if _Numbers(file).load() != MAGIC_NUMBER or _Numbers(file).load() != PROTOCOL:
        raise ValueError("another format")
    if not _Numbers(file).load()["little_endian"]:
        raise ValueError("numbers are not little-endian")
    reader = _Inert(file)
    tensors = _named(reader.load(), wanted)
    keys = [str(key) for key in _Numbers(file).load()]
    needed = {tensor.storage.key for tensor in tensors.values()}
    contents: dict[str, bytes] = {}
    for key in keys:
        length = int.from_bytes(file.read(8), "little") * reader.bytes_each[key]
        if length > size - file.tell():
            raise ValueError("a storage is cut short")
        if key in needed:
            contents[key] = file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)
    return {
        name: _numbers_of(tensor, contents[tensor.storage.key]) for name, tensor in tensors.items()
    }


def _named(loaded: Any, wanted: Sequence[str]) -> dict[str, _Tensor]:
    if not isinstance(loaded, Mapping):
        raise ValueError("no named tensors")
    tensors = {name: loaded[name] for name in wanted if name in loaded}
    if not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
        raise ValueError("something other than tensors")
    return tensors


def _numbers_of(tensor: _Tensor, raw: bytes) -> np.ndarray:
    flat = np.frombuffer(raw, tensor.storage.dtype)[tensor.offset : tensor.storage.numbers]
    if len(flat) < tensor.storage.numbers - tensor.offset:
        raise ValueError("a storage is cut short")
    strides = tuple(step * flat.itemsize for step in tensor.strides)
    return np.array(
        np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False), np.float32
    )
