"""RSNA's and CQ500's layouts, as tiny trees of phantoms, with what is odd about the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ml.datasets.dicom_headers
import ml.datasets.rsna
from ml.catalogue import BLEEDING_TYPES
from ml.datasets.dicom_headers import read_header
from ml.datasets.examples import scan_key, slice_of
from ml.datasets.layouts import find_examples
from ml.datasets.pool import in_scan_order
from ml.datasets.read import read_dataset
from ml.datasets.rsna import is_rsna
from ml.errors import DatasetError, ImageError
from ml.exploration.summary import facts_of
from ml.scans.phantoms import phantom, write_dicom
from tests.ml.made_scans import change
from tests.ml.oracle import pooled

SIDE = 64
READS = [
    f"R{reader}:{fact}"
    for reader in (1, 2, 3)
    for fact in ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "Fracture")
]


def write_image(path: Path, seed: int, **tags: object) -> Path:
    """Write a slice of the head of that seed; `tags` are set in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(phantom(seed, hemorrhage=False, size=SIDE), path)
    return change(path, **tags)


def rows_of(name: str, *types: str) -> list[str]:
    return [
        f"{name}_{kind},{int(kind in types or (kind == 'any' and bool(types)))}"
        for kind in (*BLEEDING_TYPES, "any")
    ]


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    """Two patients of three and two slices, whose names and instance numbers say nothing about the
    order; the first has a second series.
    """
    root = tmp_path / "rsna"
    slices = [
        ("ID_aa", "ID_p1", "1.1", 10.0, ("subdural", "epidural")),
        ("ID_bb", "ID_p1", "1.1", 0.0, ()),
        ("ID_cc", "ID_p1", "1.1", 5.0, ("subdural",)),
        ("ID_dd", "ID_p1", "1.2", 0.0, ()),
        ("ID_ee", "ID_p2", "2.1", 5.0, ()),
        ("ID_ff", "ID_p2", "2.1", 0.0, ()),
    ]
    lines = ["ID,Label"]
    for name, patient, series, place, types in slices:
        uids = {"StudyInstanceUID": series, "SeriesInstanceUID": series}
        write_image(
            root / "stage_2_train" / f"{name}.dcm",
            int(patient[-1]),
            PatientID=patient,
            ImagePositionPatient=[0, 0, place],
            **uids,
        )
        lines += rows_of(name, *types)
    lines += rows_of("ID_cc", "subdural") + rows_of("ID_nothere", "epidural")
    (root / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    (root / "stage_2_sample_submission.csv").write_text(
        "ID,Label\n" + "\n".join(f"ID_tt_{kind},0.5" for kind in BLEEDING_TYPES) + "\n"
    )
    write_image(root / "stage_2_test" / "ID_tt.dcm", 3)
    return root


def test_rsnas_rows_become_slices_in_the_order_of_their_headers(rsna: Path) -> None:
    result = read_dataset(rsna)
    assert result.layout == "RSNA 2019"
    assert [
        (e.path.stem, e.patient, e.scan_name, e.label) for e in in_scan_order(result.examples)
    ] == [
        ("ID_bb", "ID_p1", "ID_p1", 0),
        ("ID_cc", "ID_p1", "ID_p1", 1),
        ("ID_aa", "ID_p1", "ID_p1", 1),
        ("ID_dd", "ID_p1", "ID_p1 scan 2", 0),
        ("ID_ff", "ID_p2", "ID_p2", 0),
        ("ID_ee", "ID_p2", "ID_p2", 0),
    ]
    types = {e.path.stem: e.types for e in result.examples}
    assert (
        types["ID_aa"] == {"subdural", "epidural"}
        and types["ID_cc"] == {"subdural"}
        and types["ID_bb"] == frozenset()
    )
    assert (
        len({e.group for e in result.examples}) == 2
        and len({scan_key(e) for e in result.examples}) == 3
    )
    assert result.problems == (
        "1 images of stage_2_train.csv are not in this data set; their rows were ignored.",
    )


def test_an_image_in_two_folders_is_read_once_and_noted(rsna: Path) -> None:
    write_image(rsna / "stage_1_train" / "ID_aa.dcm", 1)
    write_image(rsna / "stage_1_train" / "ID_ee.dcm", 2)
    _, _, examples, problems = find_examples(rsna, "rsna")
    assert sorted(example.name for example in examples) == [
        f"stage_2_train/ID_{letter * 2}.dcm" for letter in "abcdef"
    ]
    assert (
        problems[0]
        == "2 images are in more than one folder, of which the last is read; the first such image"
        " is ID_aa.dcm."
    )


def test_an_image_without_a_row_and_a_damaged_one_are_left_out_and_noted(rsna: Path) -> None:
    write_image(rsna / "stage_2_train" / "ID_zz.dcm", 1)
    whole = (rsna / "stage_2_train" / "ID_dd.dcm").read_bytes()
    (rsna / "stage_2_train" / "ID_dd.dcm").write_bytes(whole[:-100])
    (rsna / "stage_2_train" / "ID_ee.dcm").write_bytes(whole[:200])
    result = read_dataset(rsna)
    assert {e.path.stem for e in result.examples} == {"ID_aa", "ID_bb", "ID_cc", "ID_ff"}
    problems = " ".join(result.problems)
    assert (
        "1 images have no row in stage_2_train.csv and are left out; the first is ID_zz.dcm."
        in problems
    )
    assert (
        "stage_2_train/ID_dd.dcm is left out" in problems
        and "stage_2_train/ID_ee.dcm is left out" in problems
    )


def test_images_may_lie_beside_the_table_of_stage_1(rsna: Path) -> None:
    for path in (rsna / "stage_2_train").iterdir():
        path.rename(rsna / path.name)
    (rsna / "stage_2_train.csv").rename(rsna / "stage_1_train.csv")
    assert len(find_examples(rsna, "rsna")[2]) == 6


def test_without_a_patient_the_study_stands_for_one(rsna: Path) -> None:
    for path in (rsna / "stage_2_train").iterdir():
        change(path, PatientID=None)
    assert {e.patient for e in find_examples(rsna, "rsna")[2]} == {"1.1", "1.2", "2.1"}


WRITTEN: dict[str, Callable[[str], str]] = {
    "a header in another case": lambda text: text.replace("ID,Label", "id, LABEL"),
    "quoted values": lambda text: "".join(
        f'"{name}","{label}"\n' for name, label in (row.split(",") for row in text.split())
    ),
    "blank rows": lambda text: "\n,\n" + text.replace("\n", "\n\n", 3) + " , \n\n",
    "Windows line ends": lambda text: text.replace("\n", "\r\n"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "semicolons": lambda text: text.replace(",", ";"),
    "numbered rows": lambda text: "".join(
        f"{number or ''},{row}\n" for number, row in enumerate(text.split())
    ),
    "decimals": lambda text: text.replace(",0\n", ",0.0\n").replace(",1\n", ",1.0\n"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_rsnas_table_is_the_same_however_it_was_saved(rsna: Path, case: str) -> None:
    plain = find_examples(rsna, "rsna")
    table = rsna / "stage_2_train.csv"
    table.write_bytes(WRITTEN[case](table.read_text()).encode())
    assert find_examples(rsna, "rsna") == plain
    table.write_text("ID,Label\n")
    assert not is_rsna(table)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            "ID_aa_any,0",
            "line 50: ID_aa_any has the label 0, but a different one in an earlier row",
        ),
        (
            "ID_aa_subdural,0.5",
            "line 50: 'ID_aa_subdural,0.5' is not an image with a type of hemorrhage, and 0 or 1",
        ),
        ("ID_aa_bruise,1", "line 50: 'ID_aa_bruise,1' is not an image"),
        ("=cmd_any,1", "line 50: '=cmd_any,1' is not an image"),
        ("ID_aa_any", "line 50: 'ID_aa_any' is not an image"),
        (
            "ID_gg_any,0\nID_gg_epidural,1",
            "ID_gg shows epidural, but its row for any hemorrhage says 0",
        ),
    ],
)
def test_a_wrong_row_of_rsnas_table_is_named(rsna: Path, row: str, sentence: str) -> None:
    write_image(rsna / "stage_2_train" / "ID_gg.dcm", 1)
    with (rsna / "stage_2_train.csv").open("a") as table:
        table.write(row + "\n")
    with pytest.raises(DatasetError, match=sentence):
        find_examples(rsna, "rsna")


def test_pictures_instead_of_dicom_files_are_named(rsna: Path) -> None:
    for path in (rsna / "stage_2_train").iterdir():
        path.rename(path.with_suffix(".png"))
    with pytest.raises(
        DatasetError, match=r"rsna holds no DICOM files \(\.dcm\) for stage_2_train"
    ):
        find_examples(rsna, "rsna")


def test_a_folder_whose_name_is_a_formula_to_a_spreadsheet_is_refused(rsna: Path) -> None:
    (rsna / "stage_2_train").rename(rsna / "=cmd")
    with pytest.raises(
        DatasetError, match="the filename '=cmd/ID_bb.dcm' would be a formula in a spreadsheet"
    ):
        find_examples(rsna, "rsna")


def test_a_table_of_endless_images_that_are_not_here_is_refused(
    rsna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ml.datasets.rsna, "MOST_ABSENT", 1)
    assert len(find_examples(rsna, "rsna")[2]) == 6
    with (rsna / "stage_2_train.csv").open("a") as table:
        table.write("ID_another_any,0\n")
    with pytest.raises(
        DatasetError,
        match=r"stage_2_train\.csv names more than 1 images that are not in this data set",
    ):
        find_examples(rsna, "rsna")


def test_the_message_where_nothing_can_be_read_says_why_and_not_what_else_is_odd(
    rsna: Path,
) -> None:
    for path in (rsna / "stage_2_train").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DatasetError,
        match=r"Too many images of rsna are unreadable; the first: .*\.dcm is left out",
    ):
        read_dataset(rsna)


def test_more_images_than_are_read_are_refused_with_what_to_do(
    rsna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ml.datasets.rsna, "MOST_IMAGES", 5)
    with pytest.raises(
        DatasetError, match="rsna holds 6 images; at most 5 are read. Keep a part of the patients"
    ):
        find_examples(rsna, "rsna")


def test_a_header_is_read_without_its_pixels(tmp_path: Path) -> None:
    path = write_image(
        tmp_path / "one.dcm",
        1,
        ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6],
        ImagePositionPatient=[3, 10, 20],
    )
    path.write_bytes(path.read_bytes()[:-2000])
    header = read_header(path)
    assert (
        header.place_mm == pytest.approx(-0.6 * 10 + 0.8 * 20)
        and header.is_axial_ct
        and header.patient == "PHANTOM"
    )
    path.write_bytes(b"no DICOM file at all" * 10)
    with pytest.raises(ImageError):
        read_header(path)


def test_a_header_whose_text_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(tmp_path / "one.dcm", 1, PatientID="x" * 64)
    assert read_header(path).patient == "x" * 64
    monkeypatch.setattr(ml.datasets.dicom_headers, "LONGEST_TEXT", 63)
    with pytest.raises(ImageError, match="has a value that is far too long"):
        read_header(path)


def write_scan(folder: Path, seed: int, count: int, step_mm: float, **tags: object) -> None:
    for number in range(count):
        place = [0, 0, number * step_mm]
        uid = f"1.{seed}.{len(str(folder))}.{step_mm}"
        more = {
            "SliceThickness": step_mm,
            "SeriesInstanceUID": uid,
            "ImagePositionPatient": place,
            **tags,
        }
        write_image(folder / f"CT{count - number:06}.dcm", seed, **more)


@pytest.fixture
def cq500(tmp_path: Path) -> Path:
    """Three scans: of several series, of a thin series alone, and of contrast alone."""
    root = tmp_path / "cq500"
    first, second, third = (
        root / "qct01" / f"CQ500CT{n} CQ500CT{n}" / "Unknown Study" for n in (0, 1, 20)
    )
    write_scan(first / "CT Thin Plain", 1, 20, 0.625)
    write_scan(first / "CT PRE CONTRAST 5MM STD", 1, 10, 5.0)
    write_scan(first / "CT POST CONTRAST", 1, 10, 5.0)
    write_scan(first / "CT Bone", 1, 10, 5.0)
    write_scan(first / "CT 5mm", 1, 10, 5.0, ConvolutionKernel="H60s")
    write_scan(first / "CT Scout", 1, 3, 5.0)
    write_scan(second / "CT PLAIN THIN", 2, 16, 1.25)
    write_scan(third / "CT 4cc sec 150cc D3D on", 3, 10, 5.0)
    votes = {
        "CQ500-CT-0": ("101", "110"),
        "CQ500-CT-1": ("010", "000"),
        "CQ500-CT-20": ("111", "000"),
        "CQ500-CT-7": ("000", "000"),
    }
    lines = ["name,Category," + ",".join(READS)]
    for name, (ich, sdh) in votes.items():
        cells = [
            {"ICH": ich, "SDH": sdh}.get(column[3:], "000")[int(column[1]) - 1] for column in READS
        ]
        lines.append(",".join([name, "B1", *cells]))
    (root / "reads.csv").write_text("\n".join(lines) + "\n")
    (root / "prediction_probabilities.csv").write_text("name,ICH\nCQ500-CT-0,0.9\n")
    return root


def test_a_scan_of_cq500_is_one_plain_series_with_the_label_of_most_readers(cq500: Path) -> None:
    result = read_dataset(cq500)
    assert result.layout == "CQ500" and {e.label for e in result.examples} == {None}
    of_first = [e for e in in_scan_order(result.examples) if e.patient == "CQ500-CT-0"]
    assert {e.path.parent.name for e in of_first} == {"CT PRE CONTRAST 5MM STD"}, (
        "nearest to 5 mm, without contrast, not for bone"
    )
    assert [e.path.stem for e in of_first] == [f"CT{n:06}" for n in range(10, 0, -1)], (
        "from foot to head, whatever the names say"
    )
    assert {(e.scan_label, e.scan_types) for e in of_first} == {(1, frozenset({"subdural"}))}
    assert {(e.scan_label, e.scan_types) for e in result.examples if e.patient == "CQ500-CT-1"} == {
        (0, frozenset())
    }
    assert result.problems == (
        "1 scans of reads.csv are not in this data set; their rows were ignored.",
        ("CQ500-CT-20 is left out: it has no unenhanced axial series with a soft-tissue kernel."),
    )


def test_thin_slices_of_cq500_are_read_as_the_slabs_of_serving(cq500: Path) -> None:
    result = read_dataset(cq500)
    slabs = [e for e in result.examples if e.patient == "CQ500-CT-1"]
    assert len(slabs) == 4 and [1 + len(e.beside) for e in slabs] == [4, 4, 4, 4]
    first = slice_of(slabs[0]).pixels
    path = slabs[0].beside[-1]
    write_dicom(phantom(9, hemorrhage=True, size=SIDE), path)
    change(
        path,
        SliceThickness=1.25,
        SeriesInstanceUID=read_header(slabs[0].path).series,
        ImagePositionPatient=[0, 0, 3.75],
    )
    mean = (3 * first + phantom(9, hemorrhage=True, size=SIDE)) / 4
    assert slice_of(slabs[0]).pixels == pytest.approx(mean, abs=0.01)
    assert read_dataset(cq500).fingerprint != result.fingerprint, "each file of a slab counts"


def test_a_scan_that_readers_do_not_agree_about_is_left_out(cq500: Path) -> None:
    table = cq500 / "reads.csv"
    header, first, *rest = table.read_text().splitlines()
    cells = first.split(",")
    cells[2], cells[9] = "", "0"  # R1:ICH, R2:ICH; R3 says 1
    table.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    _, _, examples, problems = find_examples(cq500, "cq500")
    assert {e.patient for e in examples} == {"CQ500-CT-1"}
    assert (
        "CQ500-CT-0 is left out: the readers disagree about hemorrhage without a majority, or gave"
        " no label." in problems
    )


def test_a_long_name_and_undecided_scans_that_are_not_here_make_no_long_sentences(
    cq500: Path,
) -> None:
    table = cq500 / "reads.csv"
    undecided = [f"CQ500-CT-{number} {'x' * 500}," + "," * len(READS) for number in range(100, 110)]
    table.write_text(table.read_text() + "\n".join(undecided) + "\n")
    problems = find_examples(cq500, "cq500")[3]
    assert (
        problems[0].startswith("11 scans of reads.csv are not in this data set")
        and len(problems) == 2
    )
    table.write_text(table.read_text() + undecided[0].replace(",,", ",,maybe", 1) + "\n")
    with pytest.raises(DatasetError, match=r"CQ500-CT-100 is in the table twice\.$"):
        find_examples(cq500, "cq500")


def test_a_wrong_row_of_cq500s_table_is_named(cq500: Path) -> None:
    table = cq500 / "reads.csv"
    good = table.read_text()
    for old, new, sentence in (
        ("CQ500-CT-7", "CT-7", "line 5: 'CT-7' is not a name such as CQ500-CT-0"),
        ("CQ500-CT-7", "CQ500-CT-1", "line 5: CQ500-CT-1 is in the table twice"),
        (
            "CQ500-CT-0,B1,1",
            "CQ500-CT-0,B1,maybe",
            r"line 2 \(CQ500-CT-0\): R1:ICH is 'maybe', neither 0 nor 1",
        ),
    ):
        table.write_text(good.replace(old, new))
        with pytest.raises(DatasetError, match=sentence):
            find_examples(cq500, "cq500")


def test_scans_of_cq500_stand_in_a_pool_beside_labeled_slices(cq500: Path, rsna: Path) -> None:
    pool = pooled([read_dataset(rsna), read_dataset(cq500)], (), 0)
    assert len(pool.labels) == 6 + 14 and pool.given_scan_labels == {3: 1, 4: 0}
    assert not pool.known[6:].any() and pool.known[:6].all()


def test_who_reads_a_data_set_may_stop_while_headers_are_read(cq500: Path, rsna: Path) -> None:
    reports: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        reports.append((done, total))
        raise InterruptedError

    for root in (rsna, cq500):
        with pytest.raises(InterruptedError):
            read_dataset(
                root, on_image=stop, decode=lambda *_, **__: pytest.fail("a picture was read")
            )
    assert reports == [(0, 6), (0, 3)]


def test_an_exploration_counts_scans_and_types(cq500: Path, rsna: Path) -> None:
    of_slices, of_wholes = facts_of(read_dataset(rsna)), facts_of(read_dataset(cq500))
    assert of_slices["scans"] == 3 and of_slices["scan_labels"] == {
        "positive": 1,
        "negative": 2,
        "unknown": 0,
        "as_wholes": 0,
    }
    assert of_slices["patients"] == 2 and of_slices["types"]["subdural"] == {
        "slices": 2,
        "patients": 1,
    }
    assert of_slices["types"]["intraventricular"] == {"slices": 0, "patients": 0}
    assert of_wholes["scans"] == 2 and of_wholes["scan_labels"] == {
        "positive": 1,
        "negative": 1,
        "unknown": 0,
        "as_wholes": 2,
    }
    assert of_wholes["types"]["subdural"] == {"slices": 0, "patients": 1}


def test_rows_that_are_cut_off_leave_a_label_unknown(rsna: Path) -> None:
    table = rsna / "stage_2_train.csv"
    lines = table.read_text().splitlines()
    cut = [
        line
        for line in lines
        if not line.startswith(("ID_bb_any", "ID_bb_subdural", "ID_cc_any", "ID_cc_epidural"))
    ]
    table.write_text("\n".join(cut) + "\n")
    _, _, examples, problems = find_examples(rsna, "rsna")
    values = {example.path.stem: (example.label, example.types) for example in examples}
    assert values["ID_bb"] == (None, None)
    assert values["ID_cc"] == (1, None)  # subdural; whether epidural too, nobody says
    assert "1 images have rows for some types of bleeding only" in problems[0]
    table.write_text("\n".join([lines[0], *(one for one in lines if "_subdural" in one)]) + "\n")
    labels = {example.label for example in find_examples(rsna, "rsna")[2]}
    assert labels == {1, None}
