"""The exploration report: a folder with index.html and its images, which needs neither a network
connection nor scripts.

All text from a data set (names, problems) is escaped, since a report may be opened by someone who
does not trust the data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ml.datasets.examples import Example, slice_of
from ml.datasets.read import Dataset
from ml.exploration.summary import GRAYS
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.slices import render

BLOOD, NO_BLOOD, NOTHING = "#a3201b", "#0b6480", "#8796a0"
MOST_PAIRS, MOST_LISTED, TILE_PX = 8, 200, 150
STEPS: dict[str, InputSpec] = {
    "as it is": InputSpec(),
    "Otsu": InputSpec(segmentation="otsu"),
    "GrabCut": InputSpec(segmentation="grabcut"),
    "watershed": InputSpec(segmentation="watershed"),
    "edges (Canny)": InputSpec(segmentation="edges"),
    "skull stripping": InputSpec(skull_stripping=True),
    "upright": InputSpec(upright=True),
    "percentiles": InputSpec(normalisation="percentile"),
    "CLAHE": InputSpec(normalisation="clahe"),
}
"""The columns of the preprocessing examples."""

ABOVE_CHANCE = '<strong class="warning">above chance</strong>'
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;"
    "color:#1c2a33}h1,h2{line-height:1.2}h2{margin-top:2.5rem}img{max-width:100%;height:auto}"
    "table{border-collapse:collapse}th,td{text-align:left;padding:.25rem .9rem .25rem 0;"
    "border-bottom:1px solid #d5dde2;vertical-align:top}figure{margin:1rem 0}"
    "figcaption{color:#4b5d68}.warning{color:#a3201b}"
)


def write_report(
    opened: Sequence[Dataset],
    facts: Sequence[Mapping[str, Any]],
    sources: Sequence[Mapping[str, Any]],
    out: Path,
) -> Path:
    """Write the report of one or several data sets and return its index.html.

    Args:
        opened: the data sets.
        facts: result of `ml.exploration.summary.explore` for each.
        sources: result of `ml.exploration.summary.compare_sources`.
        out: a folder, created if missing; files of an earlier report are replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = [
        part
        for n, (dataset, summary) in enumerate(zip(opened, facts, strict=True), 1)
        for part in _of_one(dataset, summary, out, n)
    ]
    parts += list(_of_sources(sources, out))
    title = "Exploration of " + " and ".join(escape(dataset.name) for dataset in opened)
    page = out / "index.html"
    page.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self'"
        " file:; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n",
        encoding="utf-8",
    )
    return page


def _of_one(dataset: Dataset, summary: Mapping[str, Any], out: Path, number: int) -> Iterator[str]:
    """Yield the HTML about one data set, and write its images with `number` in their names.

    One function, because it is the page from top to bottom: each image and the text below it.
    """

    def picture(name: str) -> Path:
        return out / f"{number}-{name}.png"

    yield f"<h2>{escape(dataset.name)}</h2>"
    yield _facts(summary)
    contact_sheet(dataset).save(picture("samples"))
    yield _figure(
        picture("samples"),
        "Samples",
        "Images sampled evenly from the data set; those with hemorrhage come first. Do the classes"
        " look alike?",
    )
    _sizes(dataset.examples).savefig(picture("sizes"))
    yield _figure(
        picture("sizes"),
        "Sizes",
        "Each dot is an image, by width and height. If the classes are in different places, they"
        " can be distinguished without looking at the content.",
    )
    _grays(summary["histograms"]).savefig(picture("grays"))
    yield _figure(
        picture("grays"),
        "Gray levels inside the head",
        "Mean histogram of gray levels from black (air) to white (bone), by class. Blood adds"
        " bright gray levels; a shift of the whole curve means that the classes were windowed or"
        " photographed differently.",
    )
    if summary["slices_per_patient"]:
        _slices_per_patient(dataset.examples).savefig(picture("patients"))
        yield _figure(
            picture("patients"),
            "Slices of each patient",
            "A patient's slices resemble each other, so they stay on the same side of every split.",
        )
    _probes(summary["probes"]).savefig(picture("probes"))
    yield _figure(
        picture("probes"),
        "Shortcut probes",
        "How well non-anatomical features predict the class, in grouped cross-validation: 0.5 is"
        " chance, 1 is perfect, the line is the 95% interval. Whatever is above chance is a"
        " shortcut that a model can learn instead of hemorrhage. (File size also depends on the"
        " content, so values slightly above chance are expected.)",
    )
    yield _probe_table(summary["probes"])
    if dataset.near_duplicates:
        _pairs(dataset).save(picture("duplicates"))
        yield _figure(
            picture("duplicates"),
            "Near-duplicates",
            f"{len(dataset.near_duplicates)} pairs are near-duplicates and share a group; the"
            f" first {MOST_PAIRS} are shown, one above the other. Split between training and test,"
            " they would inflate the metrics.",
        )
        yield _list([f"{one} and {other}" for one, other in dataset.near_duplicates])
    _steps(dataset.examples).savefig(picture("steps"))
    yield _figure(
        picture("steps"),
        "Preprocessing and segmentation",
        "The result of each step on a few slices. Selected regions keep their gray levels,"
        " everything else is dimmed to half; edges are white.",
    )
    if summary["problems"]:
        yield "<h3>Problems</h3>"
        yield _list(summary["problems"])


def _of_sources(sources: Sequence[Mapping[str, Any]], out: Path) -> Iterator[str]:
    for number, pair in enumerate(sources, 1):
        one, other = map(escape, pair["sources"])
        path = out / f"source-{number}.png"
        _probes(pair["probes"]).savefig(path)
        yield f"<h2>Can {one} be distinguished from {other}?</h2>"
        yield _figure(
            path,
            "Source probes",
            "How well simple features distinguish the two sources: 0.5 is chance, 1 is perfect. If"
            " they can be distinguished and hemorrhage is more frequent in one of them, a model"
            " trained on both can learn the source instead of the hemorrhage.",
        )
        yield _probe_table(pair["probes"])


def _facts(summary: Mapping[str, Any]) -> str:
    sizes = "; ".join(
        f"{side} {s['min']}–{s['max']} px, median {s['median']} px"
        for side, s in summary["sizes"].items()
    )
    per_patient = summary["slices_per_patient"]
    rows = {
        "Layout": summary["layout"],
        "Images": summary["images"],
        "With hemorrhage": summary["positive"],
        "Without": summary["negative"],
        "Without a label": summary["unknown"],
        "Patients": summary["patients"] or "unknown",
        "Scans": f"{summary['scans']}: {_of_scans(summary['scan_labels'])}",
        "Types of bleeding": _of_types(summary["types"]) or "unknown",
        "Slices of a patient": (
            f"{per_patient['min']}–{per_patient['max']}, median {per_patient['median']:g}"
            if per_patient
            else "unknown"
        ),
        "Groups": summary["groups"],
        "Near-duplicate pairs": len(summary["near_duplicates"]),
        "Sizes": sizes,
        "Modes": ", ".join(f"{mode}: {count}" for mode, count in summary["modes"].items()),
        "Fingerprint": summary["fingerprint"],
    }
    return (
        "<table>"
        + "".join(
            f'<tr><th scope="row">{name}</th><td>{escape(str(value))}</td></tr>'
            for name, value in rows.items()
        )
        + "</table>"
    )


def _of_scans(labels: Mapping[str, int]) -> str:
    counts = (
        f"{labels['positive']} with hemorrhage, {labels['negative']} without, {labels['unknown']}"
        " without a label"
    )
    return (
        f"{counts}; {labels['as_wholes']} have only scan-level labels"
        if labels["as_wholes"]
        else counts
    )


def _of_types(types: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(
        f"{name}: {count['slices']} slices, {count['patients']} patients"
        for name, count in types.items()
    )


def _figure(path: Path, title: str, sentence: str) -> str:
    return (
        f'<h3>{escape(title)}</h3>\n<figure><img src="{escape(path.name)}" alt="{escape(title)}">'
        f"<figcaption>{escape(sentence)}</figcaption></figure>"
    )


def _list(sentences: Sequence[str]) -> str:
    more = (
        f"<p>And {len(sentences) - MOST_LISTED} more.</p>" if len(sentences) > MOST_LISTED else ""
    )
    return (
        "<ul>"
        + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences[:MOST_LISTED])
        + f"</ul>{more}"
    )


def _probe_table(probes: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        "<tr><th"
        f' scope="row">{escape(probe["name"])}</th><td>{_interval(probe["auroc"])}</td>'
        f"<td>{_interval(probe['accuracy'])}</td>"
        f"<td>{'–' if probe['majority'] is None else format(probe['majority'], '.3f')}</td>"
        f"<td>{ABOVE_CHANCE if probe['suspicious'] else ''}</td></tr>"
        for probe in probes
    )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Probe", "AUROC", "Accuracy", "Always the larger class", "")
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _interval(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return escape(f"– ({metric['reason']})")
    return (
        f"{metric['value']:.3f} ({metric['low']:.3f}–{metric['high']:.3f})"
        if metric["low"] is not None
        else f"{metric['value']:.3f}"
    )


def _sizes(examples: Sequence[Example]) -> Figure:
    figure = Figure((7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="width in px", ylabel="height in px")
    for label, name, color in (
        (None, "no label", NOTHING),
        (0, "no hemorrhage", NO_BLOOD),
        (1, "hemorrhage", BLOOD),
    ):
        sizes = [(e.width, e.height) for e in examples if e.label == label]
        if sizes:
            widths, heights = zip(*sizes, strict=True)
            axes.scatter(
                widths, heights, s=14, alpha=0.5, color=color, label=f"{name} ({len(sizes)})"
            )
    axes.legend()
    return figure


def _grays(histograms: Mapping[str, Sequence[float]]) -> Figure:
    figure = Figure((7, 3.2), layout="constrained")
    axes = figure.add_subplot(
        xlabel="gray in the brain window (0 black, 1 white)", ylabel="share of the head"
    )
    for name, label, color in (
        ("negative", "no hemorrhage", NO_BLOOD),
        ("positive", "hemorrhage", BLOOD),
    ):
        if histograms[name]:
            axes.plot(GRAYS, histograms[name], color=color, label=label, drawstyle="steps-mid")
    if axes.lines:
        axes.legend()
    return figure


def _slices_per_patient(examples: Sequence[Example]) -> Figure:
    of_all = Counter(e.patient for e in examples if e.patient)
    positive = Counter(e.patient for e in examples if e.patient and e.label == 1)
    patients = sorted(of_all, key=lambda patient: (-positive[patient], -of_all[patient]))
    places = np.arange(len(patients))
    figure = Figure((7, 3), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{len(patients)} patients", ylabel="slices", xticks=[])
    axes.bar(places, [of_all[patient] for patient in patients], color=NO_BLOOD, label="all")
    axes.bar(
        places, [positive[patient] for patient in patients], color=BLOOD, label="with hemorrhage"
    )
    axes.legend()
    return figure


def _probes(probes: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure((7, 0.5 * len(probes) + 1), layout="constrained")
    axes = figure.add_subplot(xlabel="AUROC", xlim=(0, 1.02), ylim=(len(probes) - 0.5, -0.5))
    axes.set_yticks(range(len(probes)), [probe["name"] for probe in probes])
    axes.axvline(0.5, color=NOTHING, linestyle="--")
    for place, probe in enumerate(probes):
        auroc = probe["auroc"]
        if auroc["value"] is not None:
            color = BLOOD if probe["suspicious"] else NO_BLOOD
            axes.plot(auroc["value"], place, "o", color=color)
            if auroc["low"] is not None:
                axes.plot([auroc["low"], auroc["high"]], [place, place], color=color)
    return figure


def _pairs(dataset: Dataset) -> Image.Image:
    by_name = {example.name: example for example in dataset.examples}
    pairs = dataset.near_duplicates[:MOST_PAIRS]
    sheet = Image.new("L", (TILE_PX * len(pairs), TILE_PX * 2))
    for column, pair in enumerate(pairs):
        for row, name in enumerate(pair):
            tile = render(slice_of(by_name[name]), TILE_PX)
            sheet.paste(tile, (column * TILE_PX, row * TILE_PX))
    return sheet


def _steps(examples: Sequence[Example]) -> Figure:
    chosen: list[Example] = []
    for label in (1, 0):
        of_class = [example for example in examples if example.label == label]
        chosen += (
            [of_class[at] for at in sorted({len(of_class) // 3, 2 * len(of_class) // 3})]
            if of_class
            else []
        )
    chosen = chosen or list(examples[:2])
    figure = Figure((1.3 * len(STEPS), 1.3 * len(chosen) + 0.3), layout="constrained")
    grid = figure.subplots(len(chosen), len(STEPS), squeeze=False)
    for row, example in enumerate(chosen):
        slice_ = slice_of(example)
        for column, (name, spec) in enumerate(STEPS.items()):
            axes = grid[row, column]
            axes.imshow(to_input(slice_, spec)[0][..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=7)
    return figure


def contact_sheet(dataset: Dataset, n: int = 24, max_px: int = 160) -> Image.Image:
    """Return `n` images sampled evenly from the data set as one gray image, hemorrhage in the upper
    half; any images if there are no labels.

    Each tile is a square of `max_px`; a row holds eight.
    """
    columns = 8
    rows_of_tiles: list[list[Example]] = []
    labels = (1, 0) if any(example.label is not None for example in dataset.examples) else (None,)
    for label in labels:
        of_class = [example for example in dataset.examples if example.label == label]
        chosen = [
            of_class[i]
            for i in np.linspace(0, len(of_class) - 1, min(max(n // 2, 1), len(of_class))).astype(
                int
            )
        ]
        rows_of_tiles += [chosen[i : i + columns] for i in range(0, len(chosen), columns)]
    sheet = Image.new("L", (columns * max_px, len(rows_of_tiles) * max_px))
    for row, tiles in enumerate(rows_of_tiles):
        for column, example in enumerate(tiles):
            tile = render(slice_of(example), max_px)
            sheet.paste(
                tile,
                (
                    column * max_px + (max_px - tile.width) // 2,
                    row * max_px + (max_px - tile.height) // 2,
                ),
            )
    return sheet
