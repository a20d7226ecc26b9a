"""What people do with Hemoscan, in a real browser: submit and read; import, train, promote and roll
back.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from ml.artifacts.folder import read_card
from ml.catalogue import STARTER_DIR
from tests.e2e.browser import log_in, send, sign_up
from tests.e2e.conftest import Service, a_service
from tests.e2e.pictures import phantom_dataset, phantom_dicom, phantom_png, phantom_series

VERDICT = re.compile(
    r"^((No )?Brain Hemorrhage Detected\.|Inconclusive\. Please have this scan read\.)$"
)
VERDICT_MS = 20_000
IMPORT_MS = 60_000
TRAINING_MS = 180_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """All of the service."""
    with a_service(tmp_path_factory.mktemp("service")) as service:
        service.start("web", "worker-predict", "worker-train", "beat")
        service.wait_until_ready()
        yield service


def submit(page: Page, file: Path) -> None:
    """Submit a scan; its page opens."""
    page.goto("/scans/new")
    page.set_input_files("main form [name=file]", file)
    send(page, "file")
    expect(page).to_have_url(re.compile("/scans/[0-9a-f]{32}$"))


def expect_drawn(images: Locator) -> None:
    """Wait until pictures have come; the page's policy forbids Playwright's own waiting, which
    evaluates text there.
    """
    for image in images.all():
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0


def expect_verdict(page: Page) -> None:
    """Wait for the sentence."""
    expect(page.get_by_text(VERDICT).first).to_be_visible(timeout=VERDICT_MS)


def test_sign_up_submit_and_read_the_verdict(
    service: Service, visit: Callable[..., Page], tmp_path: Path
) -> None:
    page = visit()
    sign_up(page, "ann")
    # So that the verdict is certain to come while the page is open.
    with service.programs.paused("worker-predict"):
        submit(page, phantom_png(tmp_path, 11, hemorrhage=True, size=512))
        page.evaluate("window.neverReloaded = true")
        expect(page.get_by_text(VERDICT)).to_have_count(0)
    expect_verdict(page)
    assert page.evaluate("window.neverReloaded") is True

    outline = page.locator("#viewer [data-part=outline]")
    expect(outline).to_be_hidden()
    page.keyboard.press("o")
    expect(outline).to_be_visible()
    expect_drawn(outline)
    # With the result comes the panel in which one says something about it.
    expect(page.get_by_role("group", name="Is there hemorrhage in this scan?")).to_be_visible()
    assert page.evaluate("window.neverReloaded") is True

    page.get_by_role("button", name="Generate heat maps").click()
    page.wait_for_load_state()
    slider = page.locator("input[type=range][data-opacity-of]")
    heat = page.locator(f"#{slider.get_attribute('data-opacity-of')}")
    expect(page.get_by_label("Heat map", exact=True)).to_be_enabled(timeout=VERDICT_MS)
    expect(heat).to_be_visible()  # It was asked for.
    page.keyboard.press("h")
    expect(heat).to_be_hidden()
    page.keyboard.press("h")
    expect(slider).to_be_visible()
    expect(heat).to_be_visible()
    expect_drawn(heat)
    slider.fill("20")
    expect(heat).to_have_css("opacity", "0.2")
    slider.fill("90")
    expect(heat).to_have_css("opacity", "0.9")
    page.screenshot(path=tmp_path / "verdict.png", full_page=True)

    address = page.url
    page.goto("/scans")
    history = page.locator(f"a[href='{address.removeprefix(service.url)}']").first
    expect(history).to_be_visible()
    expect_drawn(page.locator("main img"))

    page.goto("/account")
    page.get_by_role("link", name="API documentation").click()
    operation = page.locator("#operations-scans-submit_scans")
    operation.locator(".opblock-summary-control").click()
    expect(operation).to_contain_text("Needs the scope submit")
    expect(operation.get_by_role("button", name="Try it out")).to_be_visible()

    stranger = visit(lossy=True)
    sign_up(stranger, "bob")
    for path in ("", "/progress", "/image.png", "/thumbnail.png", "/heatmap.png"):
        answer = stranger.goto(f"{address}{path}")
        assert answer is not None
        assert answer.status == 404


def test_a_series_is_submitted_and_its_slices_are_scrolled(
    service: Service, visit: Callable[..., Page], tmp_path: Path
) -> None:
    page = visit()
    sign_up(page, "dora")
    submit(page, phantom_series(tmp_path, 15, bleeds=range(5, 8), slices=12))
    expect_verdict(page)
    first = page.locator("#viewer .first-slices a")
    expect(first).to_have_count(5)
    page.keyboard.press("o")
    outline = page.locator("#viewer [data-part=outline]")
    expect(outline).to_be_visible()
    expect_drawn(outline)
    for index in range(5):
        first.nth(index).click()
        expect(page.locator("#viewer [data-part=place]")).to_contain_text(" of 12, ")
    for image in page.locator("#viewer img:not([hidden])").all():
        expect(image).to_have_js_property("naturalWidth", 128)
    page.locator("#slice").fill("1")
    expect(page.locator("#viewer [data-part=place]")).to_have_text(re.compile("^1 of 12, "))
    page.screenshot(path=tmp_path / "series.png", full_page=True)


def test_without_scripts_a_scan_is_answered_too(visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit(java_script_enabled=False)
    sign_up(page, "carol")
    submit(page, phantom_dicom(tmp_path, 12, hemorrhage=False))
    expect_verdict(page)  # The page asks for itself again.
    expect(page.locator("main img").first).to_be_visible()


DROP = """([names, size]) => {
  const dropped = new DataTransfer();
  names.forEach((name) => dropped.items.add(new File(["x".repeat(size)], name)));
  const options = { dataTransfer: dropped, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("drop", options));
}"""
"""What the browser does when files of these names are dropped on the page."""


def bar(page: Page, name: str) -> Locator:
    """Return a part of the bar for submitting."""
    return page.locator(f"#submit [data-part={name}]")


def test_what_is_dropped_is_submitted_from_the_worklist(
    service: Service, visit: Callable[..., Page], tmp_path: Path
) -> None:
    page = visit(lossy=True)
    sign_up(page, "erin")
    expect(page.get_by_role("heading", name="No CT available?")).to_be_visible()
    page.evaluate(DROP, [[f"{number}.png" for number in range(10_000)], 1])
    expect(bar(page, "message")).to_have_text(
        "More than 2,000 files cannot be sent at once, so nothing was added."
        " Please send them folder by folder."
    )
    expect(bar(page, "staged")).to_be_hidden()
    page.evaluate(DROP, [["notes.txt", "Thumbs.db"], 9])
    bar(page, "send").click()
    expect(bar(page, "total")).to_have_text("0 of 2 files accepted, 2 refused.")
    expect(bar(page, "list")).to_contain_text("not a PNG, JPEG, DICOM or NIfTI image")
    expect(bar(page, "list")).to_contain_text("system file or disc directory")

    folder = tmp_path / "head"
    folder.mkdir()
    picture = phantom_png(tmp_path, 16, hemorrhage=True, size=128).read_bytes()
    for number in range(1, 41):
        (folder / f"slice {number}.png").write_bytes(picture)
    busy = [503, 429]

    def answer(route: Route) -> None:
        if busy:
            route.fulfill(status=busy.pop(), headers={"Retry-After": "1"}, body="Busy")
        else:
            route.continue_()

    page.route("**/scans/files", answer)
    bar(page, "folder-input").set_input_files(folder)
    expect(bar(page, "series")).to_contain_text("40 images in “head” look like slices of one scan")
    page.fill("#submit-title", "Forty")
    bar(page, "send").click()
    expect(bar(page, "list")).to_contain_text("The server is busy; trying again in 1 s")
    expect(bar(page, "total")).to_have_text(
        re.compile("40 of 40 files accepted as "), timeout=VERDICT_MS
    )
    expect(bar(page, "list")).to_contain_text("Accepted: 1 scan, 40 slices.")
    expect(bar(page, "next")).to_contain_text("You can close this page")
    expect(page.locator("#worklist tbody tr")).to_have_count(1)  # Without a reload.
    expect(page.get_by_text("Try a phantom")).to_be_visible()

    bar(page, "folder-input").set_input_files(folder)
    expect(page.locator("#submit-title")).to_have_value("")  # It was that of what was sent before.
    page.fill("#submit-title", "Forty")
    page.select_option("#submit-pictures", "apart")
    bar(page, "send").click()
    expect(bar(page, "total")).to_have_text(
        re.compile("40 of 40 files accepted as "), timeout=VERDICT_MS
    )
    expect(page.locator("#worklist tbody tr")).to_have_count(41)
    expect(page.locator("#worklist").get_by_role("link", name="Forty · Head (40)")).to_be_visible()


def test_a_study_is_followed_selected_and_exported(
    service: Service, visit: Callable[..., Page], tmp_path: Path
) -> None:
    page = visit()
    sign_up(page, "fred")
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number in (1, 2):
            with zipfile.ZipFile(phantom_series(tmp_path, number, bleeds=[], slices=3)) as series:
                for name in series.namelist():
                    slice_ = pydicom.dcmread(io.BytesIO(series.read(name)))
                    slice_.StudyInstanceUID, slice_.SeriesNumber = "1.2.3", number
                    slice_.save_as(tmp_path / "slice.dcm")
                    packed.write(tmp_path / "slice.dcm", f"{number}/{name}")
    with service.programs.paused("worker-predict"):
        bar(page, "files-input").set_input_files(archive)
        page.fill("#submit-title", "Monday")
        bar(page, "send").click()
        study = page.locator("#worklist tr.study")
        expect(study).to_contain_text("2 series")
        expect(study).to_contain_text("Waiting")
        page.evaluate("window.neverReloaded = true")
    expect(study).to_contain_text("Done", timeout=3 * VERDICT_MS)
    expect(page).to_have_title(re.compile(r"^\(2\) Worklist"), timeout=VERDICT_MS)
    expect(page.locator("#worklist tr.unread")).to_have_count(2)
    assert page.evaluate("window.neverReloaded") is True

    expect(page.locator("#selection")).to_be_hidden()
    for key in ("j", "j", "x"):  # The study, its first series, which is selected.
        page.keyboard.press(key)
    expect(page.locator("#selection .count")).to_have_text("1 selected")
    expect(page.locator("#worklist tr.series a").first).to_be_focused()
    page.get_by_label("Select the series shown of Monday").check()
    expect(page.locator("#selection .count")).to_have_text("2 selected")
    with page.expect_download() as exported:
        page.get_by_role("button", name="Export CSV").click()
    rows = list(csv.DictReader(Path(exported.value.path()).read_text().splitlines()))
    assert len(rows) == 2 and len({row["study_id"] for row in rows}) == 1
    page.get_by_role("button", name="Make STAT").click()
    expect(page.get_by_text("2 scans were made STAT.")).to_be_visible()
    page.locator("#worklist tr.series a").first.click()
    expect_verdict(page)
    page.goto("/scans")
    expect(page.locator("#worklist tr.unread")).to_have_count(1)
    page.get_by_label("Select all on this page").check()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete permanently").click()
    expect(page.get_by_text("You have no scans yet.")).to_be_visible()


def test_import_train_promote_predict_and_roll_back(
    service: Service, visit: Callable[..., Page], tmp_path: Path
) -> None:
    service.flask("create-admin", "root")
    page = visit()
    log_in(page, "root")
    page.goto("/admin/models")
    starter = page.locator("h2:has-text('Live slice model') a").inner_text()

    page.goto("/admin/datasets")
    page.fill("[name=name]", "Phantoms")
    page.set_input_files("[name=archive]", phantom_dataset(tmp_path))
    send(page, "archive")
    expect(page.locator("dt:text-is('Hemorrhage') + dd")).to_have_text("16", timeout=IMPORT_MS)
    expect(page.locator("dt:text-is('Patients') + dd")).to_have_text("16")
    expect(page.locator("img[src*='contact-sheet']")).to_be_visible()

    page.goto("/admin/runs/new")
    page.check("[name=datasets]")
    page.locator("details:has([name=setting_folds]) summary").click()
    page.fill("[name=setting_folds]", "2")
    page.select_option("[name=setting_controls]", "cheap")
    expect(page.locator("#outlook")).to_contain_text(re.compile(r"on \d+ images"))
    page.get_by_role("button", name="Launch", exact=True).click()
    expect(page).to_have_url(re.compile("/admin/runs/[0-9a-f]{32}$"))
    page.evaluate("window.neverReloaded = true")
    trained = page.get_by_role("heading", name=re.compile("Created version"))
    expect(trained.or_(page.get_by_text("Training failed"))).to_be_visible(timeout=TRAINING_MS)
    expect(trained).to_be_visible()
    assert page.evaluate("window.neverReloaded") is True
    version = trained.locator("a").inner_text()
    page.get_by_role("link", name="Figures", exact=True).click()
    percent, fraction = r"\d{1,3}\.\d", r"[01]\.\d+"
    for figure, number in (
        ("Accuracy, %", percent),
        ("Sensitivity, %", percent),
        ("Specificity, %", percent),
        ("AUROC", fraction),
    ):
        shown = page.locator(f"tr:has(th:text-is('{figure}')) td").first
        expect(shown).to_have_text(re.compile(rf"^{number}\s*\({number}–{number}\)$"))
    page.get_by_role("link", name="Curves", exact=True).click()
    expect(page.locator("svg.roc").first).to_be_visible()
    expect(page.locator("table.confusion").first).to_be_visible()
    page.screenshot(path=tmp_path / "training.png", full_page=True)

    page.get_by_role("link", name="Run", exact=True).click()
    trained.locator("a").click()
    expect(page.locator("ul.checks")).to_contain_text("Not comparable with the live version.")
    page.fill("[name=reason]", "It was trained on phantoms.")
    page.fill("[name=confirmation]", "promote although it is not comparable")
    send(page, "reason")
    expect(page.get_by_text(f"{version} is now live")).to_be_visible()
    submit(page, phantom_png(tmp_path, 13, hemorrhage=True))
    expect_verdict(page)
    expect(page.locator("main")).to_contain_text(version)

    page.goto("/admin/models")
    page.get_by_text("Roll back to a version that was live before").click()
    page.get_by_role("link", name=f"Roll back to {starter}").click()
    page.get_by_role("link", name="Evaluations", exact=True).click()
    page.get_by_role("button", name="Evaluate").click()
    expect(page.get_by_role("heading", name="16 scans")).to_be_visible(timeout=IMPORT_MS)
    expect(page.locator("svg.calibration").first).to_be_visible()
    page.get_by_role("link", name=starter, exact=True).click()
    page.get_by_text("Operating point: as trained").click()
    page.get_by_label(re.compile("^Sensitive")).check()  # The slider and the figures follow.
    sensitive = read_card(STARTER_DIR).points["slice"]["sensitive"].threshold
    expect(page.locator("#threshold-meaning")).to_contain_text(f"At {sensitive:.3f}, of 100 slices")
    expect(page.locator("#threshold-slider")).to_have_value(f"{round(sensitive / 0.005) * 0.005:g}")
    page.get_by_label(re.compile("^As trained")).check()
    page.fill("[name=reason]", "It was only a test.")
    # Eight phantoms of each class are too few to compare on.
    page.fill("[name=confirmation]", "promote although it is not comparable")
    send(page, "reason")
    expect(page.get_by_text(f"{starter} is now live")).to_be_visible()
    submit(page, phantom_png(tmp_path, 14, hemorrhage=False))
    expect_verdict(page)
    expect(page.locator("main")).to_contain_text(starter)
