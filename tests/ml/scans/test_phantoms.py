from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
import pydicom
import pytest
from PIL import Image

from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.phantoms import Kind, _main, phantom, write_demonstration, write_dicom
from ml.scans.read import read_series

OFFERED = Path(__file__).resolve().parents[3] / "webapp" / "static" / "phantoms"


def test_one_seed_is_one_head_with_or_without_blood() -> None:
    without, again, bleeding = phantom(4, False), phantom(4, False), phantom(4, True)
    np.testing.assert_array_equal(without, again)
    assert not np.array_equal(without, phantom(5, False))
    changed = without != bleeding
    assert 0.005 < changed.mean() < 0.06
    assert bleeding[changed].mean() > without[changed].mean() + 10


def test_tissues_have_the_hounsfield_units_of_a_head() -> None:
    hu = phantom(0, False)
    assert (hu.dtype, hu.shape) == (np.int16, (512, 512))
    assert hu[0, 0] == -1000
    assert hu.max() > 1000
    brain = hu[(hu > 0) & (hu < 80)]
    assert 25 < np.median(brain) < 40


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("seed", range(5))
def test_every_kind_of_blood_is_blood_bright_and_large_enough_to_see(seed: int, kind: Kind) -> None:
    added = phantom(seed, True, kind, size=256)[
        phantom(seed, True, kind, size=256) != phantom(seed, False, size=256)
    ]
    blood = added[(added > 55) & (added < 85)]
    assert blood.size * (230 / 256) ** 2 > 100  # mm2
    assert np.median(blood) == pytest.approx(68, abs=5)


def test_an_unknown_kind_and_a_tiny_size_are_refused() -> None:
    with pytest.raises(ValueError, match="'nasal'"):
        phantom(0, True, "nasal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 64"):
        phantom(0, True, size=32)


def test_a_phantoms_dicom_is_a_ct_slice_without_a_patient(tmp_path: Path) -> None:
    hu = phantom(2, True, size=128)
    write_dicom(hu, tmp_path / "one", number=3, position_mm=12.5)
    write_dicom(hu, tmp_path / "two", number=3, position_mm=12.5)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    file = pydicom.dcmread(tmp_path / "one")
    assert (file.Modality, file.PatientIdentityRemoved, file.PatientID) == ("CT", "YES", "PHANTOM")
    series = read_series([tmp_path / "one"])
    assert series.warnings == ()
    np.testing.assert_array_equal(series.slices[0].pixels, hu)


def test_the_command_writes_the_demonstration_the_same_each_time_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = write_demonstration(tmp_path / "once")
    assert _main([str(tmp_path / "out")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8 == len(once)
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in once)
    assert _main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_phantoms_offered_to_users_are_small_named_as_phantoms_and_show_a_head(
    tmp_path: Path,
) -> None:
    index = json.loads((OFFERED / "index.json").read_text())
    assert {path.name for path in OFFERED.iterdir()} == {entry["file"] for entry in index} | {
        "index.json"
    }
    assert sorted(Path(entry["file"]).suffix for entry in index) == [".dcm"] * 2 + [".png"] * 4 + [
        ".zip"
    ]
    for entry in index:
        path = OFFERED / entry["file"]
        assert "phantom" in entry["title"].lower()
        assert path.stat().st_size < (60_000 if path.suffix == ".png" else 600_000)
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.size == (512, 512)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(tmp_path)
        series = read_series(sorted(tmp_path.iterdir()) if path.suffix == ".zip" else [path])
        assert series.warnings == ()
        assert len(series.slices) == (20 if path.suffix == ".zip" else 1)
        assert to_input(series.slices[0], InputSpec())[1].shows_head
