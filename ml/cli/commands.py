"""The commands of `python -m ml`.

Imported inside each command are the modules that are slow to import because they load TensorFlow,
scikit-learn, SciPy, matplotlib or ONNX Runtime, which `python -m ml card` does not need.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ml.artifacts.folder import read_card
from ml.artifacts.markdown import model_card
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR, architecture_named
from ml.checkpoints import replacing
from ml.cli.terminal import StatusLine, figure, minutes, say, say_figures, say_states
from ml.datasets.archive import unpack
from ml.errors import ArtifactError, DatasetError, ImageError, SettingError
from ml.evaluation.result_tables import Row, rows_of_run, update_results
from ml.evaluation.worklist import Department, scans_of, sentences, simulate
from ml.inference.outlines import NO_OUTLINES
from ml.paper.cells import plan
from ml.scans.files import files_of_series
from ml.scans.read import ORDER_GIVEN, read_series
from ml.scans.volume import write_masks
from ml.typed_json import to_json

BY_NAME = "The pictures have no position; they were ordered by the last number in their names."


def explore_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Describe data sets and, if there are several, how distinguishable they are."""
    from ml.exploration.summary import compare_sources, explore, measure_all

    opened = [
        _dataset(
            path,
            stack,
            needs_both_classes=False,
            on_image=StatusLine(f"reading {path.name}: image").count,
        )
        for path in options.datasets
    ]
    measured = [
        measure_all(dataset, StatusLine(f"measuring {dataset.name}: image").count)
        for dataset in opened
    ]
    facts = [explore(dataset, of_one) for dataset, of_one in zip(opened, measured, strict=True)]
    sources = compare_sources(opened, measured)
    if options.out:
        from ml.exploration.report import write_report

        page = write_report(opened, facts, sources, options.out)
        sys.stderr.write(f"The report is {page}\n")
    if options.json:
        return _write_json(facts[0] if len(facts) == 1 else {"datasets": facts, "sources": sources})
    for of_one in facts:
        for name, value in of_one.items():
            if name not in ("probes", "histograms"):
                say(
                    f"{name.replace('_', ' ')}:"
                    f" {value if isinstance(value, (str, int)) else json.dumps(value)}"
                )
        _say_probes("labels predicted by", of_one["probes"])
    for pair in sources:
        _say_probes(f"{' vs. '.join(pair['sources'])} by", pair["probes"])


def train_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Train a model, show progress, and print its metrics."""
    from ml.training.run import LICENSE_NOTES, TrainConfig, train

    settings = dict(_key_and_value(text) for text in options.set)
    # fail before a data set is read
    architecture_named(options.architecture).parse_settings(settings)
    config = TrainConfig(
        architecture=options.architecture,
        settings=settings,
        seed=options.seed,
        init=_initial(options.init),
        command=shlex.join(["python", "-m", "ml", *_deciding(arguments)]),
        reuse=options.reuse,
        license_notes=(*LICENSE_NOTES, *options.license),
        notes=tuple(options.note),
    )
    datasets = [_dataset(path, stack) for path in options.datasets]

    card = train(config, datasets, options.out, StatusLine().train)
    if options.json:
        return _write_json(json.loads(card.to_json()))
    say(f"Model {card.id} in {options.out / 'model'}")
    for level, metrics in (("slice", card.metrics), ("patient", card.patient_metrics)):
        if metrics:
            say(f"{level}:")
            say_figures(metrics)
    for control in card.controls:
        outcome = f"AUROC {figure(control.auroc)}" if control.auroc else control.skipped
        say(f"control {control.name.replace('_', ' ')}: {outcome}")
    if card.blocked_because:
        say(card.blocked_because)
    for sentence in (card.protocol, *card.notes):
        say(sentence)


def predict_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Predict scans and print one line for each; a folder is one series. Unreadable scans get a
    line, too; it is an error only if no scan can be read.
    """
    from ml.inference.predictor import Predictor

    predictor = Predictor(_model_folder(options.model))
    if options.outline:
        _require_outline_of_one(options, predictor.gives_outlines)
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    counter = StatusLine("predicting scan") if len(options.paths) > 1 else None
    for path in options.paths:
        row = _predicted(path, predictor, options.outline)
        warnings += [f"{path}: {warning}" for warning in row["warnings"]]
        rows.append(row)
        if counter:
            counter.count(len(rows), len(options.paths))
    if options.format == "csv":
        table = csv.DictWriter(
            sys.stdout,
            ["path", "probability", "threshold", "positive", "state"],
            extrasaction="ignore",
        )
        table.writeheader()
        table.writerows(rows)
    else:
        _write_json(rows)
    unread = [f"{row['path']}: {row['error']}" for row in rows if row["error"]]
    if len(unread) == len(rows):
        raise ImageError("\n".join(unread))
    sys.stderr.writelines(f"{sentence}\n" for sentence in (*warnings, *unread))


def _predicted(path: Path, predictor: Any, outline: Path | None) -> dict[str, Any]:
    """Return what is reported for one scan, and write its outline if requested."""
    row: dict[str, Any] = {
        "path": str(path),
        "probability": None,
        "threshold": predictor.card.threshold,
        "positive": None,
        "state": None,
        "types": None,
        "volume_ml": None,
        "no_volume_because": None,
        "warnings": [],
        "error": None,
    }
    try:
        series = read_series(files_of_series(path))
        result = predictor.predict(series)
    except ImageError as err:
        return {**row, "error": str(err)}
    if outline:
        masks = result.outlines.masks or [None] * len(series.slices)
        with replacing(outline) as unfinished:
            write_masks(series, masks, unfinished)
    return row | {
        "probability": result.probability,
        "threshold": result.threshold,
        "positive": result.positive,
        "state": result.state,
        "types": dict(result.types),
        "volume_ml": result.outlines.volume_ml,
        "no_volume_because": result.outlines.no_volume_because or None,
        "warnings": [
            BY_NAME if warning == ORDER_GIVEN and path.is_dir() else warning
            for warning in result.warnings
        ],
    }


def _require_outline_of_one(options: argparse.Namespace, gives_outlines: bool) -> None:
    if len(options.paths) > 1:
        raise SettingError("--outline takes one scan; a folder is one.")
    if not gives_outlines:
        raise SettingError(NO_OUTLINES)
    if not options.outline.name.endswith(".nii.gz"):
        raise SettingError(f"--outline writes .nii.gz, not {options.outline.name!r}.")


def evaluate_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Evaluate a model on a labeled data set."""
    from ml.evaluation.plots import write_plots
    from ml.validation.external import evaluate

    model = _model_folder(options.model)
    read_card(model)  # fail before a data set is read
    dataset = _dataset(
        options.dataset,
        stack,
        needs_both_classes=False,
        keeps_bare=True,
        on_image=StatusLine("reading image").count,
    )
    result = evaluate(
        model, dataset, options.out, StatusLine("scoring image").count, threads=os.cpu_count() or 1
    )
    write_plots(options.out)
    if options.json:
        return _write_json(to_json(result))
    for level, metrics in (("slice", result.slice), ("patient", result.patient)):
        say(f"{level}:")
        say_figures(metrics)
        if result.states is not None:
            say_states(getattr(result.states, level))
    for sentence in (*result.notes, *result.problems):
        say(sentence)
    say(f"metrics.json, predictions.csv, answers.csv and plots are in {options.out}")


def calibrate_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Calibrate a model to a site."""
    from ml.validation.site_calibration import calibrate

    model = _model_folder(options.model)
    read_card(model)  # fail before a data set is read
    dataset = _dataset(options.dataset, stack, on_image=StatusLine("reading image").count)
    result = calibrate(
        model, dataset, options.out, StatusLine("scoring image").count, threads=os.cpu_count() or 1
    )
    if options.json:
        return _write_json(to_json(result))
    for level, calibration in result.items():
        say(f"{level}: {calibration.scans} confirmed")
        for side, figures in (("before", calibration.before), ("after", calibration.after)):
            shown = f"sensitivity {figure(figures.sensitivity)}"
            shown += f"  specificity {figure(figures.specificity)}"
            say(f"  {side:6}  {shown}  Brier {figures.brier:.3f}")
    say(f"The calibrated model is in {options.out / 'model'}")


def simulate_calibration_command(
    options: argparse.Namespace, stack: ExitStack, arguments: list[str]
) -> None:
    """Show what local calibration would do at each data set of a run."""
    from ml.validation.site_calibration import simulate_sites

    table = csv.writer(sys.stdout)
    rows = simulate_sites(options.run)
    if rows:
        table.writerow(rows[0])
    table.writerows(
        [f"{value:.3f}" if isinstance(value, float) else value for value in row.values()]
        for row in rows
    )


def ship_answers_command(
    options: argparse.Namespace, stack: ExitStack, arguments: list[str]
) -> None:
    """Write a training run's out-of-fold predictions without file and patient names."""
    from ml.validation.shipped_answers import ship_answers

    opened = [
        _dataset(path, stack, on_image=StatusLine(f"reading {path.name}: image").count)
        for path in options.datasets
    ]
    rows = ship_answers(options.run, opened, options.out)
    say(f"{rows} answers are in {options.out}")


def compare_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Show the metrics of several runs on the images they share, and their differences."""
    from ml.evaluation.comparison import compare

    result = compare(options.runs)
    if options.json:
        return _write_json(to_json(result))
    for level, compared in (("slice", result.slice), ("patient", result.patient)):
        say(f"{level}: {compared.n} in common")
        width = max(len(run.run) for run in compared.runs)
        for run in compared.runs:
            figures = list(run.metrics.items())
            if run.auroc_within_folds:
                figures.append(("auroc within folds", run.auroc_within_folds))
            shown = "  ".join(f"{name} {figure(estimate)}" for name, estimate in figures)
            say(f"  {run.run:{width}}  {shown}")
        # a data set may be named "all"
        for dataset, level_compared in [("all", compared), *(compared.by_dataset or {}).items()]:
            for difference in level_compared.differences:
                say(
                    f"  {dataset}, {level_compared.n} in common, {difference.run} minus"
                    f" {difference.minus}: auroc {figure(difference.auroc, signed=True)}  accuracy"
                    f" {figure(difference.accuracy, signed=True)}"
                )


def worklist_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Simulate how much sooner hemorrhages are read when a model prioritizes the worklist."""
    department = Department(
        **{name: getattr(options, name) for name in Department.__dataclass_fields__}
    )
    result = simulate(
        scans_of(_model_folder(options.run_or_model), options.dataset),
        department,
        options.seed,
        StatusLine("simulating day").count,
    )
    if options.json:
        return _write_json(to_json(result))
    for sentence in sentences(result):
        say(sentence)


def paper_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Run the paper's experiment, honest and leaked, and write its table and graphs."""
    from ml.paper.grid import Watcher, run_paper
    from ml.paper.report import write_report

    dataset = _dataset(options.dataset, stack, on_image=StatusLine("reading image").count)
    cells = plan(len(dataset.examples), *([options.only] if options.only else []))

    def say_plan(total: int, done: int, seconds: float) -> None:
        sys.stderr.write(
            f"{done} of {total} cells done"
            + (f"; the rest takes about {minutes(seconds)}\n" if done < total else "\n")
        )

    command = shlex.join(["python", "-m", "ml", *arguments])
    init = _initial(options.init)
    results = run_paper(
        dataset,
        cells,
        options.out,
        init=init,
        seed=options.seed,
        command=command,
        watcher=Watcher(
            on_progress=StatusLine().train,
            on_plan=say_plan,
            on_cell=lambda so_far: write_report(so_far, options.out),
        ),
    )
    written = write_report(results, options.out)
    if options.json:
        return _write_json(to_json(results))
    say((options.out / "table.md").read_text(encoding="utf-8"))
    say("Written: " + ", ".join(str(path) for path in written))


def card_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Write a model's card as Markdown."""
    sys.stdout.write(model_card(read_card(_model_folder(options.model))))


def _initial(name: str) -> Any:
    return name if name in ("random", "starter") else _model_folder(name)


def _model_folder(name: str) -> Path:
    return {"starter": STARTER_DIR, "starter-series": STARTER_SERIES_DIR}.get(name, Path(name))


def _deciding(arguments: list[str]) -> list[str]:
    """Return the arguments that affect the results; the notes are already in the card."""
    return [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if not {before, word} & {"--note", "--license", "--reuse"}
    ]


def _dataset(path: Path, stack: ExitStack, **how: Any) -> Any:
    from ml.datasets.read import read_dataset

    if path.is_file():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hemoscan-")))
        return read_dataset(unpack(path, folder / "dataset"), name=path.stem, **how)
    if not path.exists():
        raise DatasetError(f"There is no data set at {path}.")
    return read_dataset(path, **how)


def _say_probes(what: str, probes: Sequence[dict[str, Any]]) -> None:
    for probe in probes:
        auroc, warning = probe["auroc"], "  above chance" if probe["suspicious"] else ""
        shown = (
            auroc["reason"]
            if auroc["value"] is None
            else f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
        )
        say(f"{what} {probe['name']}: {shown}{warning}")


def _key_and_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise SettingError(f"--set needs key=value, not {text!r}.")
    return key, value


def _write_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def results_command(options: argparse.Namespace, stack: ExitStack, arguments: list[str]) -> None:
    """Add the metrics of finished runs to the result tables."""
    gathered: dict[str, list[Row]] = {}
    for text in options.runs:
        run, sign, protocol = text.rpartition("=")
        if not sign or not run or not protocol.strip():
            raise ArtifactError(
                f'A run needs a protocol, RUN="5-fold by patient" for one, not {text!r}.'
            )
        for name, rows in rows_of_run(Path(run), protocol.strip()).items():
            gathered.setdefault(name, []).extend(rows)
    for name, rows in gathered.items():
        update_results(options.out / f"{name}.csv", rows)
        say(f"{options.out / f'{name}.csv'}: {len(rows)} rows")


COMMANDS: dict[str, Callable[[argparse.Namespace, ExitStack, list[str]], None]] = {
    "explore": explore_command,
    "train": train_command,
    "predict": predict_command,
    "evaluate": evaluate_command,
    "calibrate": calibrate_command,
    "simulate-calibration": simulate_calibration_command,
    "ship-answers": ship_answers_command,
    "compare": compare_command,
    "worklist": worklist_command,
    "paper": paper_command,
    "results": results_command,
    "card": card_command,
}
