"""Exploration: shortcuts that were put in are found, and the report shows what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ml.datasets.read import Dataset, read_dataset
from ml.exploration.report import write_report
from ml.exploration.shortcuts import (
    Measured,
    read_sample,
    sample_of,
    source_probes,
    write_sample,
)
from ml.exploration.summary import compare_sources, explore, measure_all
from ml.scans.phantoms import phantom
from ml.scans.slices import Slice, render

HEADS = 24


def make(
    root: Path, tinted: bool = False, letters: bool = False, patients: bool = False
) -> Dataset:
    """A set of phantoms, the odd ones with blood; normals may be blue, hemorrhages may carry a mark
    in the corner.
    """
    root.mkdir()
    rows = ["filename,label" + (",patient" if patients else "")]
    for seed in range(HEADS):
        blood = seed % 2 == 1
        gray = np.asarray(render(Slice(phantom(seed, blood, size=96).astype(np.float32), "hu"), 96))
        picture = np.stack([gray] * 3, axis=-1)
        if tinted and not blood:
            picture = picture // np.array([2, 2, 1], np.uint8)
        if letters and blood:
            picture[2:8, 2:8] = 255
        Image.fromarray(picture.astype(np.uint8)).save(root / f"{seed}.png")
        rows.append(f"{seed}.png,{int(blood)}" + (f",p{seed // 3}" if patients else ""))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return read_dataset(root)


Explored = tuple[Dataset, list[Measured], dict[str, Any]]


def explored(dataset: Dataset) -> Explored:
    measured = measure_all(dataset)
    return dataset, measured, explore(dataset, measured)


def auroc_of(probes: list[dict], name: str) -> float:
    return next(probe for probe in probes if probe["name"] == name)["auroc"]["value"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    return explored(make(tmp_path_factory.mktemp("sets") / "plain", patients=True))


@pytest.fixture(scope="module")
def tinted(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    return explored(make(tmp_path_factory.mktemp("sets") / "tinted", tinted=True, letters=True))


def test_a_tint_and_a_letter_of_one_class_are_found_as_shortcuts(tinted: Explored) -> None:
    probes = tinted[2]["probes"]
    assert auroc_of(probes, "color and mode") == 1
    assert auroc_of(probes, "border pixels") == 1
    assert {probe["name"] for probe in probes if probe["suspicious"]} >= {
        "color and mode",
        "border pixels",
        "all facts of the file",
    }


def test_a_sample_of_an_older_version_is_compared_with_a_new_one(
    plain: Explored, tinted: Explored, tmp_path: Path
) -> None:
    new = sample_of(plain[0].examples, plain[1])
    older = [
        replace(one, facts={"colour" if k == "color" else k: v for k, v in one.facts.items()})
        for one in tinted[1]
    ]
    path = tmp_path / "older.npz"
    write_sample(sample_of(tinted[0].examples, older), path)

    stored = read_sample(path)

    assert [set(one.facts) for one in stored.measured] == [set(one.facts) for one in new.measured]
    assert {probe["name"] for probe in source_probes(("new", "older"), (new, stored))} >= {
        "color and mode",
        "all facts of the file",
    }


def test_where_both_classes_come_alike_no_shortcut_is_seen(plain: Explored) -> None:
    probes = {probe["name"]: probe for probe in plain[2]["probes"]}
    assert (
        not probes["width and height"]["suspicious"] and not probes["color and mode"]["suspicious"]
    )
    assert probes["width and height"]["majority"] == 0.5


def test_histograms_are_shares_and_blood_adds_light_grays(plain: Explored) -> None:
    histograms = plain[2]["histograms"]
    positive, negative = np.array(histograms["positive"]), np.array(histograms["negative"])
    assert (positive.sum(), negative.sum()) == (
        pytest.approx(1, abs=1e-4),
        pytest.approx(1, abs=1e-4),
    )
    assert positive[24:30].sum() > 1.2 * negative[24:30].sum()


def test_slices_are_counted_by_patient(plain: Explored, tinted: Explored) -> None:
    assert plain[2]["slices_per_patient"] == {"min": 3, "median": 3.0, "max": 3}
    assert tinted[2]["slices_per_patient"] is None


def test_two_sources_are_distinguished_by_what_differs_only(
    plain: Explored, tinted: Explored
) -> None:
    (pair,) = compare_sources([plain[0], tinted[0]], [plain[1], tinted[1]])
    assert pair["sources"] == ["plain", "tinted"]
    assert auroc_of(pair["probes"], "color and mode") > 0.6
    assert auroc_of(pair["probes"], "width and height") == pytest.approx(0.5, abs=0.15)
    assert compare_sources([plain[0]], [plain[1]]) == []


class Seen(HTMLParser):
    """Collects the tags and the sources of pictures of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")


def test_the_report_is_a_folder_that_needs_nothing_else(
    plain: Explored, tinted: Explored, tmp_path: Path
) -> None:
    opened, measured, facts = ([one[at] for one in (plain, tinted)] for at in range(3))
    page = write_report(opened, facts, compare_sources(opened, measured), tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(text)
    assert not seen.tags & {"script", "link", "iframe"} and "http" not in re.sub(
        "http-equiv", "", text
    )
    assert sorted(seen.pictures) == sorted(path.name for path in page.parent.glob("*.png"))
    for name in seen.pictures:
        with Image.open(page.parent / name) as picture:
            assert picture.width > 100
    assert json.dumps(facts)


def test_words_of_a_data_set_are_escaped(plain: Explored, tmp_path: Path) -> None:
    dataset, _, facts = plain
    evil = Dataset(
        "<script>alert(1)</script>", dataset.root, dataset.layout, dataset.examples,
        ("<img src=x onerror=alert(2)>",), "f",
        (("0.png", "2.png"),),
    )  # fmt: skip
    text = write_report(
        [evil], [{**facts, "problems": list(evil.problems)}], [], tmp_path / "report"
    ).read_text(encoding="utf-8")
    assert "<script" not in text and "<img src=x" not in text
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        and "&lt;img src=x onerror=alert(2)&gt;" in text
    )


def test_a_set_without_any_label_has_a_report(plain: Explored, tmp_path: Path) -> None:
    dataset = replace(
        plain[0], examples=tuple(replace(example, label=None) for example in plain[0].examples)
    )
    facts = explore(dataset, plain[1])
    assert {probe["auroc"]["value"] for probe in facts["probes"]} == {None}
    assert write_report([dataset], [facts], [], tmp_path / "out").is_file()
