"""Data sets as people have them, and as they should not be."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml.datasets.archive import unpack
from ml.datasets.layouts import find_examples
from ml.datasets.read import read_dataset
from ml.errors import DatasetError
from ml.exploration.report import contact_sheet
from ml.exploration.summary import facts_of
from ml.scans.phantoms import phantom, write_png
from tests.ml.made_scans import write_series

SMALL_PX = 96
Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight phantoms: positions 0 to 3 with hemorrhage, 4 to 7 without."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{seed}.png" for seed in range(8)]
    for seed, path in enumerate(paths):
        write_png(phantom(seed + 100, hemorrhage=seed < 4, size=SMALL_PX), path)
    return paths


@pytest.fixture
def manifest(tmp_path: Path, pictures: list[Path]) -> Maker:
    """`manifest(rows, header)` writes the pictures and a labels.csv, and returns the folder."""

    def make(
        rows: list[list[str]], header: str = "filename,label", table: str = "labels.csv"
    ) -> Path:
        root = tmp_path / "set"
        root.mkdir()
        for path in pictures:
            (root / path.name).write_bytes(path.read_bytes())
        (root / table).write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
        return root

    return make


ROWS = [[f"{n}.png", "1" if n < 4 else "0"] for n in range(8)]
UNLISTED = "4 images have no row in labels.csv and are left out; the first is 4.png."


def test_a_manifest_is_read_with_patients_and_slices(manifest: Maker) -> None:
    rows = [[*row, f"p{n // 2}", str(n)] for n, row in enumerate(ROWS)]
    result = read_dataset(manifest(rows, "filename,label,patient,slice", "anything.csv"))
    assert result.layout == "manifest"
    assert [e.label for e in result.examples] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [e.slice for e in result.examples] == list(range(8))
    assert (
        len({e.group for e in result.examples}) == 4
        and result.examples[0].group == result.examples[1].group
    )
    assert result.problems == ()


def test_a_table_with_semicolons_is_read_and_an_odd_slice_is_reported(manifest: Maker) -> None:
    root = manifest([])
    lines = [
        ";".join([*row, f"p{n // 2}", "3.5" if n == 5 else str(n)]) for n, row in enumerate(ROWS)
    ]
    (root / "labels.csv").write_text("\n".join(["filename;label;patient;slice", *lines]))
    result = read_dataset(root)
    assert [e.slice for e in result.examples] == [0, 1, 2, 3, 4, None, 6, 7]
    assert result.problems == (
        "Slice numbers that are not integers: 1, such as '3.5' of 5.png; they are ignored.",
    )


def test_a_table_with_tabs_is_read_and_one_with_a_column_twice_is_refused(
    manifest: Maker,
) -> None:
    root = manifest([])
    lines = ["\t".join(row) for row in [["filename", "label"], *ROWS]]
    (root / "labels.csv").write_text("\n".join(lines))
    assert [e.label for e in find_examples(root, "set")[2]] == [1, 1, 1, 1, 0, 0, 0, 0]
    twice = [",".join([*row, "0"]) for row in ROWS]
    (root / "labels.csv").write_text("\n".join(["filename,label,Label", *twice]))
    with pytest.raises(DatasetError, match="column 'label' more than once"):
        find_examples(root, "set")


def test_types_of_bleeding_are_read_where_a_table_names_them(manifest: Maker) -> None:
    cells = ["epidural", "Subdural | epidural", "", "intraventricular"]
    result = read_dataset(
        manifest(
            [[*row, cells[n] if n < 4 else ""] for n, row in enumerate(ROWS)],
            "filename,label,subtypes",
        )
    )
    assert [e.types for e in result.examples[:4]] == [
        {"epidural"},
        {"epidural", "subdural"},
        None,
        {"intraventricular"},
    ]
    assert all(e.types == frozenset() for e in result.examples[4:]), (
        "a slice without blood has no type of it"
    )
    (result.root / "labels.csv").write_text(
        (result.root / "labels.csv").read_text().replace(",intraventricular", ",subarachnoid")
    )
    assert read_dataset(result.root).fingerprint != result.fingerprint


def test_a_table_without_types_of_hemorrhage_gives_none(manifest: Maker) -> None:
    assert {e.types for e in read_dataset(manifest(ROWS)).examples} == {None}


def test_kaggles_layout_with_its_odd_header_is_read(tmp_path: Path, pictures: list[Path]) -> None:
    root = tmp_path / "unpacked" / "head_ct"
    (root / "head_ct").mkdir(parents=True)
    (tmp_path / "unpacked" / "__MACOSX").mkdir()
    for number, path in enumerate(pictures):
        (root / "head_ct" / f"{number:03d}.png").write_bytes(path.read_bytes())
    (root / "labels.csv").write_text(
        "id, hemorrhage\n" + "".join(f"{n},{int(n < 4)}\n" for n in range(8))
    )
    (root / "groups.csv").write_text(
        "id,group\n" + "".join(f"{n},{0 if n < 2 else n}\n" for n in range(8))
    )
    result = read_dataset(tmp_path / "unpacked", name="kaggle")
    assert result.layout == "kaggle head_ct"
    assert [e.name for e in result.examples][:2] == ["head_ct/000.png", "head_ct/001.png"]
    assert len({e.group for e in result.examples}) == 7


def test_a_groups_file_that_names_strangers_is_refused(
    tmp_path: Path, pictures: list[Path]
) -> None:
    for path in pictures:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "labels.csv").write_text(
        "filename,label\n" + "".join(f"{p.name},{n % 2}\n" for n, p in enumerate(pictures))
    )
    (tmp_path / "groups.csv").write_text("filename,group\nelse.png,1\n")
    with pytest.raises(
        DatasetError, match=r"groups\.csv names else\.png, which is not an image of labels\.csv"
    ):
        read_dataset(tmp_path)


def test_a_groups_file_with_two_groups_for_an_image_is_refused(manifest: Maker) -> None:
    root = manifest(ROWS)
    (root / "groups.csv").write_text("filename,group\n0.png,a\n1.png,a\n0.png,b\n")
    sentence = "groups.csv, line 4: 0.png has the group b, but a different one in an earlier row."
    with pytest.raises(DatasetError, match=sentence):
        read_dataset(root)


def test_a_missing_patient_is_none_however_a_program_writes_it(manifest: Maker) -> None:
    cells = ["nan", "NaN", "N/A", "None", "null", "", "p1", "p2"]
    rows = [[*row, cell] for row, cell in zip(ROWS, cells, strict=True)]
    examples = read_dataset(manifest(rows, "filename,label,patient")).examples
    assert [example.patient for example in examples] == [None] * 6 + ["p1", "p2"]
    assert len({example.group for example in examples}) == 8


def test_the_path_of_an_image_on_another_computer_is_found_by_its_end(manifest: Maker) -> None:
    rows = [[f"/kaggle/input/set/{name}", label] for name, label in ROWS]
    result = read_dataset(manifest(rows))
    assert [(e.name, str(e.label)) for e in result.examples] == [tuple(row) for row in ROWS]
    assert "8 images have another name" in result.problems[0]


def test_one_folder_a_class_is_read(tmp_path: Path, pictures: list[Path]) -> None:
    for number, path in enumerate(pictures):
        folder = tmp_path / ("Hemorrhage" if number < 4 else "Normal")
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "Normal" / ".DS_Store").write_bytes(b"x")
    result = read_dataset(tmp_path)
    assert result.layout == "folders"
    assert sum(e.label or 0 for e in result.examples) == 4 and len(result.examples) == 8


def test_an_empty_label_is_unknown(manifest: Maker) -> None:
    result = read_dataset(manifest([["0.png", ""], *ROWS[1:]]))
    assert result.examples[0].label is None
    assert facts_of(result)["unknown"] == 1


def test_the_same_picture_twice_is_one_group_and_is_reported(manifest: Maker) -> None:
    root = manifest([*ROWS, ["copy.jpg", "1"]])
    write_png(phantom(100, hemorrhage=True, size=400), root / "0.png")
    with Image.open(root / "0.png") as image:
        image.resize((300, 300)).save(root / "copy.jpg", quality=80)
    result = read_dataset(root)
    assert result.near_duplicates == (("0.png", "copy.jpg"),)
    assert result.examples[0].group == result.examples[8].group
    assert len({e.group for e in result.examples}) == 8


def test_a_copy_with_the_other_label_is_a_problem(manifest: Maker) -> None:
    root = manifest([*ROWS, ["copy.png", "0"]])
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    assert read_dataset(root).problems == (
        "0.png and copy.png look the same but have different labels.",
    )


def test_the_fingerprint_changes_with_a_label_and_with_nothing_else(manifest: Maker) -> None:
    root = manifest(ROWS)
    before = read_dataset(root).fingerprint
    assert read_dataset(root, name="set").fingerprint == before
    (root / "labels.csv").write_text(
        (root / "labels.csv").read_text().replace("3.png,1", "3.png,0")
    )
    assert read_dataset(root).fingerprint != before


@pytest.mark.parametrize(
    ("rows", "header", "sentence"),
    [
        (
            [["0.png", "1"], ["nothere.png", "0"]],
            "filename,label",
            "labels.csv, line 3: the image nothere.png is missing.",
        ),
        (
            [["0.png", "1"], ["4.png", "maybe"]],
            "filename,label",
            "labels.csv, line 3 (4.png): the label 'maybe' is neither 0 nor 1 nor empty.",
        ),
        (
            [["0.png", "1", "yes"], ["4.png", "0", "1"]],
            "filename,label,hemorrhage",
            "labels.csv, line 3 (4.png): the columns label and hemorrhage contradict each other.",
        ),
        (
            [["0.png", "1"], ["1.png", "1"]],
            "filename,label",
            "The data set set holds no image without hemorrhage; both classes are needed.",
        ),
        (
            [["4.png", "0"]],
            "filename,label",
            "The data set set holds no image with hemorrhage; both classes are needed.",
        ),
        (
            [["0.png", "1"]],
            "picture,truth",
            (
                "labels.csv needs the columns filename and label (or id and hemorrhage); it has"
                " picture, truth."
            ),
        ),
        ([["0.png", "1"], ["0.png", "0"]], "filename,label", "labels.csv lists 0.png 2 times."),
        ([["0.png", "1"], ["./0.png", "0"]], "filename,label", "labels.csv lists 0.png 2 times."),
        (
            [["0.png", "1", "1"], ["4.png", "0", "1"]],
            "filename,any,subdural",
            "labels.csv, line 3 (4.png): the columns any and subdural contradict each other.",
        ),
        (
            [["0.png", "1", "0"], ["4.png", "0", "0"]],
            "filename,label,No Hemorrhage",
            "labels.csv, line 3 (4.png): the columns label and no hemorrhage contradict each"
            " other.",
        ),
        (
            [["../secret.png", "1"]],
            "filename,label",
            "labels.csv, line 2: '../secret.png' is not the name of a file in the data set.",
        ),
        (
            [["/etc/passwd", "1"]],
            "filename,label",
            "labels.csv, line 2: '/etc/passwd' is not the name of a file in the data set.",
        ),
        (
            [["a\tb", "1"]],
            "filename,label",
            "labels.csv, line 2: 'a\\tb' is not the name of a file in the data set.",
        ),
        (
            [["x" * 300, "1"]],
            "filename,label",
            f"labels.csv, line 2: {'x' * 100!r} is not the name of a file in the data set.",
        ),
        ([["²", "1"]], "id,hemorrhage", "labels.csv, line 2: the image ² is missing."),
        (
            [["9" * 5000, "1"]],
            "id,hemorrhage",
            f"labels.csv, line 2: {'9' * 100!r} is not the name of a file in the data set.",
        ),
        (
            [["=cmd|'/c calc'!A1", "1"]],
            "filename,label",
            "labels.csv, line 2: the filename \"=cmd|'/c calc'!A1\" would be a formula in a"
            " spreadsheet; please write it without =.",
        ),
        (
            [["0.png", "1", "@SUM(1+1)"]],
            "filename,label,patient",
            (
                "labels.csv, line 2: the patient '@SUM(1+1)' would be a formula in a spreadsheet;"
                " please write it without @."
            ),
        ),
        (
            [["0.png", "=1"]],
            "filename,label",
            "labels.csv, line 2 (0.png): the label '=1' is neither 0 nor 1 nor empty.",
        ),
        (
            [["0.png", "1", "../../etc/passwd"]],
            "filename,label,mask",
            "labels.csv, line 2: the mask '../../etc/passwd' is not a file of the data set.",
        ),
        (
            [["0.png", "1", "epidural|extradural"]],
            "filename,label,subtypes",
            (
                "labels.csv, line 2: 'extradural' is not a type of hemorrhage; the types are"
                " epidural, subdural, subarachnoid, intraparenchymal, intraventricular."
            ),
        ),
        (
            [["0.png", "0", "subdural"]],
            "filename,label,subtypes",
            (
                "labels.csv, line 2: the types of hemorrhage 'subdural' are given, but the label"
                " is not 1."
            ),
        ),
        ([["0.png"]], "filename,label", "labels.csv, line 2 (0.png): the label is missing."),
        ([], "filename,label", "labels.csv has no rows."),
    ],
)
def test_what_is_wrong_is_reported_in_one_sentence(
    manifest: Maker, rows: list[list[str]], header: str, sentence: str
) -> None:
    root = manifest(rows, header)
    with pytest.raises(DatasetError) as caught:
        read_dataset(root)
    assert str(caught.value) == sentence


def test_an_unreadable_image_is_named_and_left_out(manifest: Maker) -> None:
    root = manifest(ROWS)
    (root / "7.png").write_bytes((root / "7.png").read_bytes()[:200])
    result = read_dataset(root)
    assert len(result.examples) == 7
    assert len(result.problems) == 1 and result.problems[0].startswith("7.png is left out: ")


def test_an_unreadable_outline_is_named_and_left_out_and_its_image_stays(manifest: Maker) -> None:
    root = manifest(
        [["0.png", "1", "drawn.png"], ["1.png", "1", "0.png"], *([*row, ""] for row in ROWS[2:])],
        "filename,label,mask",
    )
    (root / "drawn.png").write_bytes((root / "0.png").read_bytes()[:200])
    result = read_dataset(root)
    assert [example.name for example in result.examples if example.mask] == ["1.png"]
    assert len(result.examples) == 8
    assert result.problems == (
        (
            "The mask of 0.png is left out: The image is damaged or incomplete and cannot be"
            " decoded."
        ),
    )


def test_a_mask_that_contradicts_its_image_or_label_is_named_and_left_out(manifest: Maker) -> None:
    masks = ["small.png", "drawn.png", "drawn.png", "empty.png"]
    masks += ["white.png", "large.png"]
    labels = ["1", "0", "1", "0", "1", "1"]
    rows = [
        [f"{number}.png", label, mask]
        for number, (label, mask) in enumerate(zip(labels, masks, strict=True))
    ]
    root = manifest(rows, "filename,label,mask")
    with Image.open(root / "0.png") as image:
        width, height = image.size
    drawn = Image.new("L", (width, height))
    drawn.save(root / "empty.png")
    drawn.paste(255, (width // 2, height // 2, width // 2 + 4, height // 2 + 4))
    drawn.save(root / "drawn.png")
    drawn.resize((48, 40)).save(root / "small.png")
    drawn.point(lambda value: 255 - value).save(root / "white.png")
    drawn.paste(255, (2, 2, width - 2, height - 2))
    drawn.save(root / "large.png")
    result = read_dataset(root)
    assert [one.name for one in result.examples if one.mask] == ["2.png", "3.png"]
    assert [one.label for one in result.examples] == [1, 0, 1, 0, 1, 1]
    too_much = "it outlines most of the image; what is not hemorrhage must be black."
    assert result.problems == (
        "2 images have no row in labels.csv and are left out; the first is 6.png.",
        f"The mask of 0.png is left out: it has 48 x 40 pixels, its image {width} x {height}.",
        "The mask of 1.png is left out: it outlines a hemorrhage, and the label says that there is"
        " none.",
        f"The mask of 4.png is left out: {too_much}",
        f"The mask of 5.png is left out: {too_much}",
    )


def test_a_box_outside_its_picture_is_named(manifest: Maker) -> None:
    boxes = [
        "subdural 0.5 0.5 0.2 0.2; epidural .9 .1 .2 .2",
        "subdural 0.95 0.5 0.2 0.2",
        "subdural 0.5 0.5 nan 0.2;0.5 0.5 0.1",
        "",
    ]
    rows = [[f"{number}.png", str(number % 2), box] for number, box in enumerate(boxes)]
    assert read_dataset(manifest(rows, "filename,label,boxes")).problems == (
        UNLISTED,
        "Boxes that do not lie within their picture: 3, such as 'subdural 0.95 0.5 0.2 0.2' of"
        " 1.png; a box is a type, center x, center y, width and height, as shares of the picture.",
    )


def test_what_the_preamble_of_a_dicom_file_claims_to_be_is_not_believed(
    manifest: Maker, tmp_path: Path
) -> None:
    content = bytearray(write_series(tmp_path / "slices", 1)[0].read_bytes())
    gif = io.BytesIO()
    Image.new("L", (3, 1), 7).save(gif, "GIF")
    content[: len(gif.getvalue())] = gif.getvalue()
    root = manifest([*ROWS, ["slice.dcm", "0"]])
    (root / "slice.dcm").write_bytes(content)
    assert read_dataset(root).examples[-1].mode == "DICOM"


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(DatasetError, match="neither a table .* nor one folder per class"):
        read_dataset(tmp_path)


def test_exploration_is_json_with_counts_sizes_and_modes(manifest: Maker) -> None:
    facts = json.loads(json.dumps(facts_of(read_dataset(manifest(ROWS)))))
    assert (facts["images"], facts["positive"], facts["negative"], facts["groups"]) == (8, 4, 4, 8)
    assert facts["sizes"]["width"] == {"min": SMALL_PX, "median": SMALL_PX, "max": SMALL_PX}
    assert facts["modes"] == {"L": 8}


def test_the_contact_sheet_shows_both_classes(manifest: Maker) -> None:
    sheet = contact_sheet(read_dataset(manifest(ROWS)), n=8, max_px=40)
    assert sheet.size == (8 * 40, 2 * 40)
    assert np.asarray(sheet)[:, :160].max() > 100


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_an_archive_is_unpacked(tmp_path: Path) -> None:
    folder = unpack(
        zipped(tmp_path / "a.zip", {"set/labels.csv": b"x", "set/a.png": b"y"}), tmp_path / "out"
    )
    assert (folder / "set" / "a.png").read_bytes() == b"y"


def test_whoever_follows_the_unpacking_may_end_it_and_nothing_stays(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []

    def follow(done: int, total: int) -> None:
        reports.append((done, total))
        if done == 1:
            raise KeyboardInterrupt

    archive = zipped(tmp_path / "a.zip", {"a": b"x", "b": b"y", "c": b"z"})
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out", on_file=follow)
    assert (reports, [path.name for path in tmp_path.iterdir()]) == ([(0, 3), (1, 3)], ["a.zip"])


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"]
)
def test_an_archive_that_leads_outside_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str
) -> None:
    archive = zipped(tmp_path / "a.zip", {"fine.txt": b"x", name: b"evil"})
    with pytest.raises(DatasetError, match="leads outside"):
        unpack(archive, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DatasetError, match="leads outside"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_numbers_with_a_sign_are_no_formulas(manifest: Maker) -> None:
    result = read_dataset(
        manifest([[*row, f"-{n}.5"] for n, row in enumerate(ROWS)], "filename,label,patient")
    )
    assert [example.patient for example in result.examples][:2] == ["-0.5", "-1.5"]


def test_a_table_that_fills_the_memory_is_refused(
    manifest: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = manifest(ROWS)
    with (root / "labels.csv").open("ab") as table:
        table.truncate(32 * 2**20 + 1)  # Most of it lies nowhere on the disk.
    with pytest.raises(DatasetError, match=r"labels\.csv is larger than 32 MB\."):
        read_dataset(root)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        (0o010644, "is not a regular file"),
        (0o060644, "is not a regular file"),
        (0o120777, "leads outside"),
        (0o100644, None),
        (0o644, None),
    ],
)
def test_only_plain_files_are_taken_out_of_an_archive(
    tmp_path: Path, mode: int, sentence: str | None
) -> None:
    odd = zipfile.ZipInfo("odd")
    odd.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(odd, "x")
    if sentence is None:
        assert (unpack(tmp_path / "a.zip", tmp_path / "out") / "odd").read_text() == "x"
    else:
        with pytest.raises(DatasetError, match=sentence):
            unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["x" * 256, "deep/" * 300 + "x", "bell\x07.png", "é" * 128])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="too long or not a valid file name"):
        unpack(zipped(tmp_path / "a.zip", {name: b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["inner.zip", "000.png"])
def test_an_archive_within_an_archive_is_refused_whatever_it_is_called(
    tmp_path: Path, name: str
) -> None:
    inner = zipped(tmp_path / "inner", {"zeros": bytes(1000)}).read_bytes()
    with pytest.raises(
        DatasetError, match=f"holds another archive, '{name}'; please unpack that one first"
    ):
        unpack(zipped(tmp_path / "a.zip", {"labels.csv": b"x", name: inner}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_whose_files_overlap_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(tmp_path / "a.zip", {"a": b"x" * 100, "b": b"x" * 100}).read_bytes())
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)  # The second file begins where the first does.
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.zip is not a readable ZIP file\."):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_an_archive_that_explodes_is_stopped_while_unpacking(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(20 * 2**20)})
    with pytest.raises(DatasetError, match="grows beyond"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04" + bytes(50)])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DatasetError, match="a.zip is not a readable ZIP file."):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_files_in_an_archive_are_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {str(n): b"" for n in range(11)})
    with pytest.raises(DatasetError, match="11 files; at most 10"):
        unpack(archive, tmp_path / "out", max_files=10)


def test_head_ct_is_read_with_its_groups_and_known_duplicates(shared_data: Path) -> None:
    result = read_dataset(shared_data / "head_ct")
    facts = facts_of(result)
    assert (facts["positive"], facts["negative"], facts["groups"]) == (100, 100, 108)
    with (shared_data / "head_ct" / "groups.csv").open() as file:
        given = {int(row["id"]): row["group"] for row in csv.DictReader(file)}
    pairs = {(int(a[-7:-4]), int(b[-7:-4])) for a, b in result.near_duplicates}
    assert {(188, 189), (198, 199), (11, 61), (5, 22), (5, 58), (105, 187)} <= pairs
    assert all(given[a] == given[b] for a, b in pairs), (
        "a pair that we join is one that people joined by eye"
    )


def classes(root: Path, pictures: list[Path], *folders: str) -> Path:
    """Write the first pictures to folders, one each."""
    for folder, path in zip(folders, pictures, strict=False):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / path.name).write_bytes(path.read_bytes())
    return root


def test_the_folder_of_a_type_is_one_of_hemorrhage_and_another_is_named(
    tmp_path: Path, pictures: list[Path]
) -> None:
    root = classes(
        tmp_path / "set", pictures, "hemorrhage", "Subdural", "edema", "edema", "normal", "masks"
    )
    result = find_examples(root, "set")
    assert [(e.name, e.label, e.types) for e in result[2]] == [
        ("Subdural/1.png", 1, {"subdural"}),
        ("hemorrhage/0.png", 1, None),
        ("normal/4.png", 0, None),
    ]
    assert result[3] == [
        "2 files are left out: the folder edema is named neither hemorrhage nor normal.",
        "1 files in masks are named like no image and are left out; the first is masks/5.png.",
    ]


def test_classes_are_known_in_other_words_and_copies_of_macos_are_none(
    tmp_path: Path, pictures: list[Path]
) -> None:
    for seed, path in enumerate(pictures):
        folder = tmp_path / "set" / ("Haemorrhagic" if seed < 4 else "Non-Haemorrhagic")
        (folder / "__MACOSX").mkdir(parents=True, exist_ok=True)
        for copy in (folder, folder / "__MACOSX"):
            (copy / path.name).write_bytes(path.read_bytes())
    result = read_dataset(tmp_path / "set")
    assert [example.label for example in result.examples] == [1] * 4 + [0] * 4


def test_where_a_class_is_missing_the_folder_that_is_none_is_named(
    tmp_path: Path, pictures: list[Path]
) -> None:
    for folder in ("hemorrhage", "others"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / folder / "0.png").write_bytes(pictures[0].read_bytes())
    with pytest.raises(DatasetError, match="both classes are needed. 1 files are left out: the"):
        read_dataset(tmp_path / "set")


def test_the_classes_of_a_split_are_read(tmp_path: Path, pictures: list[Path]) -> None:
    root = classes(
        tmp_path / "set",
        pictures,
        "train/hemorrhage",
        "val/hemorrhage",
        "train/normal",
        "val/normal",
    )
    assert [e.label for e in find_examples(root, "set")[2]] == [1, 0, 1, 0]


def test_files_that_are_not_read_are_counted_and_named(
    tmp_path: Path, pictures: list[Path]
) -> None:
    root = classes(tmp_path / "set", pictures, "hemorrhage", "normal")
    for name in ("a.bmp", "b.bmp", "c.tif"):
        (root / "normal" / name).write_bytes(b"BM")
    (root / "normal" / "1.2.840.113.7").write_bytes(pictures[5].read_bytes())
    (root / "lost.png").write_bytes(pictures[6].read_bytes())
    _, _, examples, odd = find_examples(root, "set")
    assert [e.name for e in examples if e.label == 0] == ["normal/1.2.840.113.7", "normal/1.png"]
    assert odd == [
        "2 files are left out: .bmp files, which are not read.",
        "1 files are left out: .tif files, which are not read.",
        "1 files are left out: images outside the class folders.",
    ]


def test_images_that_a_table_does_not_list_are_counted_and_named(manifest: Maker) -> None:
    root = manifest(ROWS[:7])
    (root / "LICENSE").write_text("free")
    (root / "masks").mkdir()
    (root / "masks" / "0.png").write_bytes((root / "0.png").read_bytes())
    _, _, examples, odd = find_examples(root, "set")
    assert len(examples) == 7
    assert odd == ["1 images have no row in labels.csv and are left out; the first is 7.png."]


def test_rows_without_text_are_passed_over_and_lines_are_counted_all_the_same(
    manifest: Maker,
) -> None:
    root = manifest([["", ""], *ROWS, ["", " "]])
    assert len(find_examples(root, "set")[2]) == 8
    (root / "labels.csv").write_text("filename,label\n,\n\n0.png,perhaps\n")
    with pytest.raises(DatasetError, match="line 4"):
        find_examples(root, "set")


def test_a_first_line_may_name_what_separates_the_columns(manifest: Maker) -> None:
    root = manifest(ROWS)
    text = (root / "labels.csv").read_text().replace(",", ";")
    (root / "labels.csv").write_text(f"sep=;\n{text}")
    assert len(find_examples(root, "set")[2]) == 8


def test_folders_in_a_table_may_be_divided_by_backslashes(
    tmp_path: Path, pictures: list[Path]
) -> None:
    root = classes(tmp_path / "set", pictures, *["images"] * 8)
    rows = "".join(f"images\\{name},{label}\n" for name, label in ROWS)
    (root / "labels.csv").write_text(f"filename,label\n{rows}")
    assert [e.name for e in find_examples(root, "set")[2]] == [f"images/{n}.png" for n in range(8)]


def test_kaggles_folder_may_lie_in_one_of_its_own_name(
    tmp_path: Path, pictures: list[Path]
) -> None:
    root = tmp_path / "set"
    (root / "head_ct" / "head_ct").mkdir(parents=True)
    for number, path in enumerate(pictures):
        (root / "head_ct" / "head_ct" / f"{number:03}.png").write_bytes(path.read_bytes())
    rows = "".join(f"{n},{int(n < 4)}\n" for n in range(8))
    (root / "labels.csv").write_text(f"id, hemorrhage\n{rows}")
    assert find_examples(root, "set")[2][3].name == "head_ct/head_ct/003.png"


def test_a_directory_of_millions_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "a.zip", {str(n): b"" for n in range(50)})
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("its directory was read"))
    with pytest.raises(DatasetError, match="more than 20 files and folders; at most 10"):
        unpack(archive, tmp_path / "out", max_files=10)


def test_an_archive_made_on_windows_has_folders_and_may_hold_a_document(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner", {"word/document.xml": b"x"}).read_bytes()
    archive = zipped(tmp_path / "a.zip", {"p\\1.png": b"x", "p\\about.docx": inner})
    into = unpack(archive, tmp_path / "out")
    assert sorted(path.relative_to(into).as_posix() for path in into.rglob("*.*")) == [
        "p/1.png",
        "p/about.docx",
    ]


@pytest.mark.parametrize(
    "spelled",
    [
        pytest.param(lambda name: name.removesuffix(".png"), id="no extension"),
        pytest.param(str.upper, id="another case"),
        pytest.param(lambda name: f"C:\\scans\\{name}", id="a path on another computer"),
        pytest.param(lambda name: f"set/{name}", id="with the folder of the data set"),
    ],
)
def test_names_of_images_in_another_spelling_are_found_and_noted(
    manifest: Maker, spelled: Callable[[str], str]
) -> None:
    root = manifest([[spelled(name), label] for name, label in ROWS])
    _, _, examples, odd = find_examples(root, "set")
    assert [(e.name, str(e.label)) for e in examples] == [(name, label) for name, label in ROWS]
    [note] = odd
    assert note.startswith("8 images have another name, folder or extension in labels.csv; the")
    assert note.endswith(", is 0.png.")


def test_images_in_a_folder_that_the_table_does_not_name_are_found_unless_two_are_alike(
    manifest: Maker,
) -> None:
    root = manifest(ROWS)
    for path in root.glob("*.png"):
        (root / "images").mkdir(exist_ok=True)
        path.rename(root / "images" / path.name)
    assert find_examples(root, "set")[2][0].name == "images/0.png"
    (root / "copies").mkdir()
    (root / "copies" / "3.png").write_bytes((root / "images" / "3.png").read_bytes())
    with pytest.raises(DatasetError, match=r"labels\.csv, line 5: the image 3\.png is missing\."):
        find_examples(root, "set")


def test_names_of_columns_and_labels_are_known_in_any_spelling(manifest: Maker) -> None:
    rows = [[name, f"{label}.00", f"p{name[0]}"] for name, label in ROWS]
    examples = find_examples(manifest(rows, "Image Name,Label,PatientID"), "set")[2]
    assert [(e.label, e.patient) for e in examples] == [
        (int(label), f"p{name[0]}") for name, label in ROWS
    ]


def test_a_decimal_comma_in_a_label_is_a_point(manifest: Maker) -> None:
    root = manifest([])
    rows = [f"{name};{label},0" for name, label in ROWS]
    (root / "labels.csv").write_text("\n".join(["filename;label", *rows]))
    assert [str(e.label) for e in find_examples(root, "set")[2]] == [label for _, label in ROWS]


def test_the_data_may_lie_some_folders_deep_beside_notes(manifest: Maker, tmp_path: Path) -> None:
    outer = tmp_path / "archive" / "inner"
    outer.mkdir(parents=True)
    manifest(ROWS).rename(outer / "set")
    (tmp_path / "archive" / "README.md").write_text("What these are.")
    base, _, examples, _ = find_examples(tmp_path / "archive", "set")
    assert (base, len(examples)) == (outer / "set", 8)


def test_a_data_set_named_like_a_class_has_labels_of_its_own(
    manifest: Maker, tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    root = manifest(ROWS).rename(tmp_path / "archive" / "ICH")
    base, layout, examples, _ = find_examples(tmp_path / "archive", "set")
    assert (base, layout) == (root, "manifest")
    assert [str(e.label) for e in examples] == [label for _, label in ROWS]
    (root / "labels.csv").unlink()
    for number, path in enumerate(sorted(root.glob("*.png"))):
        folder = root / ("hemorrhage" if number < 4 else "normal")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    assert [e.label for e in find_examples(tmp_path / "archive", "set")[2]] == [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("ICH/labels.csv", "filename,label\n0.png,0\n"),
        ("ICH/manifest.tsv", "filename\tlabel\n0.png\t0\n"),
        ("ICH/scans.csv", "name;any\n0.png;0\n"),
        ("ICH/a/scans.csv", "name,hemorrhage\n0.png,0\n"),
        ("ICH/subtypes.csv", "name,subdural\n0.png,0\n"),
        ("ICH/labels.xlsx", "PK"),
        ("ICH/unreadable.csv", "a,a\n1,1\n"),
        ("normal/labels.csv", "filename,label\n1.png,1\n"),
    ],
)
@pytest.mark.parametrize("split", ["", "train"])
def test_a_table_of_labels_in_a_folder_named_like_a_class_is_refused(
    tmp_path: Path, pictures: list[Path], table: str, content: str, split: str
) -> None:
    root = classes(tmp_path / "set" / split, pictures, "ICH", "normal", "other")
    (root / table).parent.mkdir(exist_ok=True)
    (root / table).write_text(content)
    with pytest.raises(DatasetError, match=f"{table} may hold the labels of its folder"):
        find_examples(tmp_path / "set", "set")


def test_a_table_of_labels_beside_the_folders_of_a_split_is_refused(
    tmp_path: Path, pictures: list[Path]
) -> None:
    classes(tmp_path / "set" / "train", pictures, "ICH", "normal")
    classes(tmp_path / "set" / "test", pictures, "ICH", "normal")
    (tmp_path / "set" / "train" / "labels.csv").write_text("filename,label\nICH/0.png,0\n")
    with pytest.raises(DatasetError, match="train/labels.csv may hold the labels"):
        find_examples(tmp_path / "set", "set")


def test_a_table_without_labels_in_a_folder_named_like_a_class_is_left_out_with_a_note(
    tmp_path: Path, pictures: list[Path]
) -> None:
    root = classes(tmp_path / "set", pictures, "ICH", "normal")
    (root / "ICH" / "scanners.csv").write_text("filename,kvp\n0.png,120\n")
    _, _, examples, notes = find_examples(root, "set")
    assert [example.label for example in examples] == [1, 0]
    assert notes == ["1 files are left out: .csv files, which are not read."]


@pytest.mark.parametrize(
    ("inner", "label"),
    [("normal", None), ("no", None), ("0", None), ("subdural", 1), ("patient 0", 1)],
)
def test_the_folder_of_one_class_in_that_of_the_other_is_refused(
    tmp_path: Path, pictures: list[Path], inner: str, label: int | None
) -> None:
    root = classes(tmp_path / "set", pictures, f"ICH/{inner}", "others")
    if label is None:
        with pytest.raises(DatasetError, match=f"ICH/{inner} is named like a class"):
            find_examples(root, "set")
    else:
        assert [example.label for example in find_examples(root, "set")[2]] == [label]


def test_folders_of_patients_may_be_numbers(tmp_path: Path, pictures: list[Path]) -> None:
    root = classes(tmp_path / "set", pictures, "ICH/0", "ICH/1", "ICH/2", "normal/1", "normal/3")
    examples = find_examples(root, "set")[2]
    assert [example.label for example in examples] == [1, 1, 1, 0, 0]


def test_masks_that_are_named_like_no_image_are_counted_and_named(manifest: Maker) -> None:
    root = manifest(ROWS)
    (root / "masks").mkdir()
    for name in ("0.png", "1_mask.png", "2_mask.png"):
        (root / "masks" / name).write_bytes((root / "0.png").read_bytes())
    assert find_examples(root, "set")[3] == [
        "2 files in masks are named like no image and are left out; the first is masks/1_mask.png."
    ]


def test_a_data_set_without_images_that_can_be_read_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "normal").mkdir()
    (tmp_path / "hemorrhage").mkdir()
    (tmp_path / "normal" / "1.bmp").write_bytes(b"BM")
    with pytest.raises(
        DatasetError, match=r"1 files are left out: \.bmp files, which are not read"
    ):
        find_examples(tmp_path, "set")
    (tmp_path / "Labels.xlsx").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"Please save Labels\.xlsx as labels\.csv\."):
        find_examples(tmp_path, "set")
