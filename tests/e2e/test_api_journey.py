"""What a program does with Hemoscan: get a token, send files, poll, fetch the pictures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from PIL import Image

from hemoscan_client import ApiError, Client, Scan
from ml.artifacts.folder import read_card
from ml.catalogue import STARTER_DIR
from tests.conftest import SHARED_DATA, make_user
from tests.e2e.conftest import Service, a_service
from tests.e2e.pictures import bad_files, phantom_dicom, phantom_png
from webapp.config import PROJECT_ROOT

VERDICTS = {True: "Brain Hemorrhage Detected.", False: "No Brain Hemorrhage Detected."}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as it answers scans, without a train worker."""
    with a_service(tmp_path_factory.mktemp("service")) as service:
        service.start("web", "worker-predict", "beat")
        service.wait_until_ready()
        yield service


class ApiClient(requests.Session):
    """A program with a token: it submits and waits with `hemoscan-client`, and fetches pictures
    itself.
    """

    def __init__(self, service: Service, username: str) -> None:
        super().__init__()
        make_user(service.app, username)
        self.service = service
        token = service.flask("create-token", username).splitlines()[-1]
        self.headers["Authorization"] = f"Bearer {token}"
        self.hemoscan = Client(service.url, token)

    def close(self) -> None:
        """Close all connections."""
        self.hemoscan.close()
        super().close()

    def answered(self, *paths: Path) -> list[Scan]:
        """Submit files and wait until the analysis of all has ended."""
        jobs = self.hemoscan.submit(paths)
        return self.hemoscan.wait([job.id for job in jobs], timeout_s=120)

    def picture(self, url: str) -> Image.Image:
        """Fetch a picture; 202 says to come again."""

        def look() -> Image.Image | None:
            answer = self.get(url, timeout=10)
            if answer.status_code == 202:
                assert answer.headers["Retry-After"] == "1"
                return None
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png"), (
                answer.text
            )
            return Image.open(io.BytesIO(answer.content))

        return self.service.eventually(look, f"{url} is drawn", within_s=120)


@pytest.fixture(scope="module")
def ann(service: Service) -> Iterator[ApiClient]:
    """Ann's program."""
    with ApiClient(service, "ann") as client:
        yield client


def assert_is_answered(client: ApiClient, scan: Scan) -> None:
    """Check a scan's verdict and fetch its pictures."""
    result = scan.result
    assert result is not None, scan.error
    positive = scan.raw["result"]["positive"]
    assert result.verdict == VERDICTS[positive]
    assert positive == (result.probability >= result.threshold)
    assert [slice.index for slice in result.slices] == [0]
    assert result.model_version.architecture == read_card(STARTER_DIR).architecture
    if result.state == "not found":
        assert scan.raw["result"]["outline_url"] is None
        return
    outline = client.picture(scan.raw["result"]["slices"][0]["outline_url"])
    assert outline.mode in ("RGBA", "LA", "P")
    # Of which the outline has at most 512 px.
    image = client.picture(f"{client.service.url}/api/v1/scans/{scan.id}/image.png")
    assert outline.width / outline.height == pytest.approx(image.width / image.height, rel=0.01)


def test_phantoms_as_png_and_dicom_are_answered(ann: ApiClient, tmp_path: Path) -> None:
    began = datetime.now(UTC)
    scans = ann.answered(
        phantom_png(tmp_path, 1, hemorrhage=True), phantom_dicom(tmp_path, 2, hemorrhage=False)
    )
    assert len(scans) == 2
    for scan in scans:
        assert_is_answered(ann, scan)
    assert {scan.id for scan in scans} <= {scan.id for scan in ann.hemoscan.results(began)}
    assert ann.hemoscan.report(scans[0].id).startswith(b"%PDF")


def test_the_script_of_the_documentation_submits_waits_lists_and_downloads(
    service: Service, ann: ApiClient, tmp_path: Path
) -> None:
    usage = (PROJECT_ROOT / "docs" / "usage.md").read_text("utf-8")
    script = usage.partition("## The API in ten minutes")[2].partition("```python\n")[2]
    (tmp_path / "ten_minutes.py").write_text(script.partition("```")[0], "utf-8")
    picture = phantom_png(tmp_path, 3, hemorrhage=True)
    token = str(ann.headers["Authorization"]).removeprefix("Bearer ")
    ran = subprocess.run(
        [sys.executable, "ten_minutes.py", picture.name],
        cwd=tmp_path,
        env={**os.environ, "HEMOSCAN_URL": service.url, "HEMOSCAN_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Brain Hemorrhage Detected." in ran.stdout
    assert next(iter(tmp_path.glob("*.pdf"))).read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    "file", ["head_ct/head_ct/000.png", "head_ct/head_ct/150.png", "dicom_samples/single"]
)
def test_a_real_slice_is_answered(ann: ApiClient, file: str) -> None:
    path = SHARED_DATA / file
    if not path.exists():
        pytest.skip("../shared/data is not here.")
    if path.is_dir():
        path = min(path.glob("*.dcm"))
    (scan,) = ann.answered(path)
    assert_is_answered(ann, scan)


def test_another_programs_scan_is_404(service: Service, ann: ApiClient, tmp_path: Path) -> None:
    (job,) = ann.hemoscan.submit([phantom_png(tmp_path, 3, hemorrhage=False)])
    with ApiClient(service, "bob") as bob:
        for path in ("", "/image.png", "/heatmap.png"):
            assert bob.get(f"{job.url}{path}", timeout=10).status_code == 404


@pytest.mark.parametrize(
    "name", ["empty.png", "text.png", "truncated.png", "huge.png", "no-pixels.dcm"]
)
def test_a_bad_file_ends_in_one_clear_sentence(ann: ApiClient, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bad_files(tmp_path)[name])
    try:
        (scan,) = ann.answered(path)
    except ApiError as err:
        assert err.status == 422
        sentence = str(err)
    else:
        assert (scan.status, scan.result) == ("failed", None)
        sentence = str(scan.error)
    assert sentence[0].isupper() or sentence.startswith(name)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert str(tmp_path) not in sentence
