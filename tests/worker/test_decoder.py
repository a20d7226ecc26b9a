"""The child process that decodes: the same answers as here, and nothing that a file does to it
reaches further than its own scan.
"""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flask import Flask

from ml.decode import write_pixels
from ml.errors import ImageError
from ml.scans.phantoms import phantom
from ml.scans.read import read_series
from ml.scans.slices import Series, Slice
from tests.ml.made_scans import nifti, packed, write_series
from tests.worker.conftest import picture, wait_for
from webapp.config import PROJECT_ROOT
from worker import decoder
from worker.decoder import BEYOND_LIMITS, Decoder, SlicesOfFile
from worker.heartbeat import heartbeat

MEMORY_MB, LIMIT_S = 300, 60


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Decoder]:
    child = Decoder(MEMORY_MB, LIMIT_S, tmp_path)
    yield child
    child.close()


@pytest.fixture
def png(tmp_path: Path) -> Path:
    (tmp_path / "picture").write_bytes(picture())
    return tmp_path / "picture"


def pid_of(child: Decoder) -> int:
    assert child._child is not None
    return child._child.pid


def hanging(folder: Path) -> Path:
    """A file whose opening never ends."""
    os.mkfifo(folder / "hanging")
    return folder / "hanging"


def test_a_scan_is_the_same_as_if_it_were_read_here(
    child: Decoder, png: Path, tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "s", 6, step_mm=3)
    paths[2].write_bytes(b"no slice")
    for given in ([png], paths):
        here, there = read_series(given), child.decode(given, tmp_path)
        for one, other in zip(here.slices, there.slices, strict=True):
            np.testing.assert_array_equal(one.pixels, other.pixels)
            assert (one.unit, one.spacing_mm) == (other.unit, other.spacing_mm)
        assert (here.warnings, here.distance_mm) == (there.warnings, there.distance_mm)


def test_a_series_outlives_its_file_and_may_be_written_to(
    child: Decoder, png: Path, tmp_path: Path
) -> None:
    series = child.decode([png], tmp_path)
    (tmp_path / "pixels.npy").unlink()
    pixels = series.slices[0].pixels
    before = pixels[0, 0]
    pixels[0, 0] = before + 1
    assert series.slices[-1].pixels[0, 0] == before
    assert [len(series.slices[start:]) for start in (0, 1)] == [1, 0]
    with pytest.raises(IndexError):
        series.slices[1]


def test_hounsfield_units_cross_as_whole_numbers_and_others_exactly(
    child: Decoder, tmp_path: Path
) -> None:
    whole = phantom(1, hemorrhage=True).round()
    for name, pixels, kind in (
        ("whole", whole, np.int16),
        ("fractions", whole + np.float32(0.5), np.float32),
        ("beyond", whole + np.float32(40_000), np.float32),
        ("none", np.where(whole > 0, whole, np.nan), np.float32),
    ):
        path = tmp_path / f"{name}.npy"
        write_pixels(Series((Slice(pixels.astype(np.float32), "hu"),) * 2), path)
        assert np.load(path).dtype == kind
        assert path.stat().st_size < 2 * pixels.size * kind().itemsize + 1000
        read = SlicesOfFile(path, "hu", (None, None))
        assert np.array_equal(read[1].pixels, pixels.astype(np.float32), equal_nan=True)


def test_one_child_serves_many_scans_and_sentences_come_through(
    child: Decoder, png: Path, tmp_path: Path
) -> None:
    child.decode([png], tmp_path)
    first = pid_of(child)
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match=r"^The file is empty\.$"):
        child.decode([tmp_path / "empty"], tmp_path)
    with pytest.raises(ImageError, match=r"64 x 64 pixels, at most 0\.001 million"):
        child.decode([png], tmp_path, max_pixels=1000)
    child.decode([png], tmp_path)
    assert pid_of(child) == first


def test_a_scan_that_needs_more_memory_fails_alone(
    child: Decoder, png: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    # 200 MB of zeros in 1 MB; as floats 400 MB more
    large.write_bytes(packed(nifti(np.zeros((512, 512, 400), np.int16), np.eye(4))))
    with pytest.raises(ImageError) as caught:
        child.decode([large], tmp_path)
    assert str(caught.value) == BEYOND_LIMITS
    assert len(child.decode([png], tmp_path).slices) == 1


def test_a_full_disk_is_not_the_files_fault_and_passes(
    child: Decoder, png: Path, tmp_path: Path
) -> None:
    child.decode([png], tmp_path)
    usual = resource.prlimit(pid_of(child), resource.RLIMIT_FSIZE)
    assert usual == (MEMORY_MB * 2**20, MEMORY_MB * 2**20)
    resource.prlimit(pid_of(child), resource.RLIMIT_FSIZE, (1000, usual[1]))
    with pytest.raises(OSError, match="File too large"):
        child.decode([png], tmp_path)
    resource.prlimit(pid_of(child), resource.RLIMIT_FSIZE, usual)
    assert len(child.decode([png], tmp_path).slices) == 1


def test_a_scan_that_takes_too_long_fails_alone(png: Path, tmp_path: Path) -> None:
    child = Decoder(MEMORY_MB, 1, tmp_path)
    with pytest.raises(ImageError) as caught:
        child.decode([hanging(tmp_path)], tmp_path)
    assert str(caught.value) == BEYOND_LIMITS
    child.limit_s = LIMIT_S
    assert len(child.decode([png], tmp_path).slices) == 1
    child.close()


def test_a_child_that_dies_over_a_scan_or_between_two_is_replaced(
    child: Decoder, png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child.decode([png], tmp_path)
    first = pid_of(child)
    requested = threading.Event()
    wait_for_answer = child._line_from

    def note(process: subprocess.Popen[bytes]) -> bytes:
        requested.set()
        return wait_for_answer(process)

    monkeypatch.setattr(child, "_line_from", note)
    pipe = hanging(tmp_path)
    failed: list[ImageError] = []

    def decode() -> None:
        with pytest.raises(ImageError) as caught:
            child.decode([pipe], tmp_path)
        failed.append(caught.value)

    scan = threading.Thread(target=decode)
    scan.start()
    assert requested.wait(LIMIT_S)
    os.kill(first, signal.SIGSEGV)
    scan.join()
    assert str(failed[0]) == BEYOND_LIMITS
    child.decode([png], tmp_path)
    second = pid_of(child)
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: child._child is not None and child._child.poll() is not None)
    child.decode([png], tmp_path)
    assert len({first, second, pid_of(child)}) == 3


def test_a_child_that_nobody_waits_for_ends_itself(tmp_path: Path) -> None:
    request = (
        f'{{"paths": ["{hanging(tmp_path)}"], "folder": "{tmp_path}", "limit_s": 1, "limits":'
        " {}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ml.decode", "300", str(tmp_path)],
        cwd=PROJECT_ROOT,
        input=request.encode(),
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGALRM


def test_the_end_of_its_input_ends_the_child(child: Decoder, png: Path, tmp_path: Path) -> None:
    child.decode([png], tmp_path)
    assert child._child is not None and child._child.stdin is not None
    child._child.stdin.close()
    assert child._child.wait(30) == 0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the system has no /proc")
def test_the_child_inherits_no_secret(
    child: Decoder, png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "a great secret")
    child.decode([png], tmp_path)
    assert b"secret" not in Path(f"/proc/{pid_of(child)}/environ").read_bytes()


def test_what_a_library_prints_is_no_answer(tmp_path: Path, png: Path) -> None:
    script = (
        "import sys, os, ml.decode, ml.scans.read\n"
        "real = ml.decode.read_series\n"
        "def read(*given, **limits): os.write(1, b'noise\\n'); return real(*given, **limits)\n"
        "ml.decode.read_series = read; sys.exit(ml.decode.main(['300',"
        " sys.argv[1]]))\n"
    )
    request = f'{{"paths": ["{png}"], "folder": "{tmp_path}", "limit_s": 60, "limits": {{}}}}\n'
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=PROJECT_ROOT,
        input=request.encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith(b'{"unit": "display"') and done.stderr == b"noise\n"


def test_a_worker_keeps_its_decoder_and_leaves_no_file_behind(
    worker_app: Flask, png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_decoder", None)
    with heartbeat().work_folder() as folder:
        mine = png.rename(folder / "picture")
        decoder.decode([mine])
        first = decoder._decoder
        assert len(decoder.decode([mine], max_pixels=5000).slices) == 1
    assert decoder._decoder is first and first is not None
    assert (first.memory_mb, first.limit_s) == (2048, 60)
    assert first.folder == heartbeat().folder and list(heartbeat().folder.iterdir()) == []
    first.close()


def test_a_work_folder_that_was_removed_and_made_again_gets_a_new_child(
    tmp_path: Path, png: Path
) -> None:
    folder = tmp_path / "folder"
    child = Decoder(MEMORY_MB, LIMIT_S, folder)
    for _ in range(2):
        folder.mkdir()
        shutil.copy(png, folder / "picture")
        assert len(child.decode([folder / "picture"], folder).slices) == 1
        shutil.rmtree(folder)
    child.close()


def test_a_bomb_ends_before_it_is_inflated(child: Decoder, tmp_path: Path) -> None:
    bomb = bytearray(nifti(np.zeros((64, 64, 4), np.int16), np.eye(4)))
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(bomb) + bytes(500 * 2**20), 1))
    with pytest.raises(ImageError, match="blank"):
        child.decode([tmp_path / "bomb"], tmp_path)
