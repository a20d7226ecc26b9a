"""What a program does with Hemoscan: get a token, send files, poll, fetch the pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from ml.artifacts.folder import read_card
from ml.catalogue import STARTER_DIR
from tests.conftest import SHARED_DATA, make_user
from tests.e2e.conftest import Service, a_service
from tests.e2e.pictures import bad_files, phantom_dicom, phantom_png

VERDICTS = {True: "Brain Hemorrhage Detected.", False: "No Brain Hemorrhage Detected."}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as it answers scans, without a train worker."""
    with a_service(tmp_path_factory.mktemp("service")) as service:
        service.start("web", "worker-predict", "beat")
        service.wait_until_ready()
        yield service


class ApiClient(requests.Session):
    """A program with a token."""

    def __init__(self, service: Service, username: str) -> None:
        super().__init__()
        make_user(service.app, username)
        self.service = service
        token = service.flask("create-token", username).splitlines()[-1]
        self.headers["Authorization"] = f"Bearer {token}"

    def submit(self, *files: tuple[str, bytes]) -> requests.Response:
        """Send files in one request."""
        return self.post(
            f"{self.service.url}/api/v1/scans", files=[("file", file) for file in files], timeout=10
        )

    def verdict_on(self, url: str) -> dict[str, Any]:
        """Poll as a client does, with the last ETag, until the scan has ended."""
        last = ""

        def look() -> dict[str, Any] | None:
            nonlocal last
            answer = self.get(url, headers={"If-None-Match": last}, timeout=10)
            last = answer.headers["ETag"]
            if answer.status_code == 304:
                return None
            told: dict[str, Any] = answer.json()
            return told if told["status"] in ("done", "failed", "cancelled") else None

        return self.service.eventually(look, f"{url} has a verdict", within_s=120)

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


def assert_is_answered(client: ApiClient, job: dict[str, str]) -> None:
    """Follow a job to its verdict and its pictures."""
    told = client.verdict_on(job["url"])
    assert told["status"] == "done", told["error"]
    result = told["result"]
    assert result["verdict"] == VERDICTS[result["positive"]]
    assert result["positive"] == (result["probability"] >= result["threshold"])
    assert [slice["index"] for slice in result["slices"]] == [0]
    assert result["model_version"]["architecture"] == read_card(STARTER_DIR).architecture
    if result["state"] == "not found":
        assert result["outline_url"] is None
        return
    outline = client.picture(result["slices"][0]["outline_url"])
    assert outline.mode in ("RGBA", "LA", "P")
    image = client.picture(f"{job['url']}/image.png")  # of which the outline has at most 512 px
    assert outline.width / outline.height == pytest.approx(image.width / image.height, rel=0.01)


def test_phantoms_as_png_and_dicom_are_answered(ann: ApiClient, tmp_path: Path) -> None:
    paths = [
        phantom_png(tmp_path, 1, hemorrhage=True),
        phantom_dicom(tmp_path, 2, hemorrhage=False),
    ]
    answer = ann.submit(*((path.name, path.read_bytes()) for path in paths))
    assert answer.status_code == 202, answer.text
    for job in answer.json()["scans"]:
        assert_is_answered(ann, job)
    listed = ann.get(
        f"{ann.service.url}/api/v1/scans", params={"status": "done"}, timeout=10
    ).json()
    assert {job["id"] for job in answer.json()["scans"]} <= {scan["id"] for scan in listed["items"]}


@pytest.mark.parametrize(
    "file", ["head_ct/head_ct/000.png", "head_ct/head_ct/150.png", "dicom_samples/single"]
)
def test_a_real_slice_is_answered(ann: ApiClient, file: str) -> None:
    path = SHARED_DATA / file
    if not path.exists():
        pytest.skip("../shared/data is not here.")
    if path.is_dir():
        path = min(path.glob("*.dcm"))
    answer = ann.submit((path.name, path.read_bytes()))
    assert answer.status_code == 202, answer.text
    assert_is_answered(ann, answer.json())


def test_another_programs_scan_is_404(service: Service, ann: ApiClient, tmp_path: Path) -> None:
    job = ann.submit(("a.png", phantom_png(tmp_path, 3, hemorrhage=False).read_bytes())).json()
    with ApiClient(service, "bob") as bob:
        for path in ("", "/image.png", "/heatmap.png"):
            assert bob.get(f"{job['url']}{path}", timeout=10).status_code == 404


@pytest.mark.parametrize(
    "name", ["empty.png", "text.png", "truncated.png", "huge.png", "no-pixels.dcm"]
)
def test_a_bad_file_ends_in_one_clear_sentence(ann: ApiClient, tmp_path: Path, name: str) -> None:
    answer = ann.submit((name, bad_files(tmp_path)[name]))
    if answer.status_code == 202:
        told = ann.verdict_on(answer.json()["url"])
        assert (told["status"], told["result"]) == ("failed", None)
        sentence = told["error"]
    else:
        assert (answer.status_code, answer.headers["Content-Type"]) == (
            422,
            "application/problem+json",
        )
        sentence = answer.json()["detail"]
    assert sentence[0].isupper() or sentence.startswith(name)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert str(tmp_path) not in sentence
