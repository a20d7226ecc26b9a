"""The command line: `python -m ml explore|train|evaluate|predict|compare|triage|paper|card`."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from ml.artifacts import ArtifactError, read_card
from ml.catalogue import ARCHITECTURES, STARTER_DIR, STARTER_SERIES_DIR, SettingError
from ml.files import files_of_series
from ml.images import ORDER_GIVEN, ImageError, read_series
from ml.terminal import Counter, Trail, figure, minutes, say, say_figures
from ml.triage import Department, scans_of, sentences, simulate

MODEL_HELP = "a model folder, or starter, or starter-series"
INIT_HELP = (
    "initial weights: random, starter (a shipped model that has not seen the images, else random), starter-series, a file or a model folder"
)
LARGEST_SEED = 2**31 - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 after a sentence on standard error, or 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        with ExitStack() as stack:
            run: Callable[[argparse.Namespace, ExitStack, list[str]], None] = options.run
            run(options, stack, given)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; the same command continues.\n")
        return 130
    except ValueError as err:
        if not isinstance(err, (ArtifactError, ImageError, SettingError)) and type(err).__name__ != "DatasetError":
            raise
        sys.stderr.write(f"{err}\n")
        return 2
    except OSError as err:  # a file where a folder should be, a folder that may not be written to
        if err.filename is None:
            raise
        sys.stderr.write(f"{err.filename}: {err.strerror}.\n")
        return 2
    return 0


def explore_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Describe data sets, and, of several, how well one can tell them apart."""
    from ml.exploration import compare_sources, explore, measure_all

    opened = [_dataset(path, stack, needs_both_classes=False, on_image=Counter(f"reading {path.name}: image")) for path in options.datasets]
    measured = [measure_all(dataset, Counter(f"measuring {dataset.name}: image")) for dataset in opened]
    facts = [explore(dataset, of_one) for dataset, of_one in zip(opened, measured, strict=True)]
    sources = compare_sources(opened, measured)
    if options.out:
        from ml.exploration_report import write_report

        page = write_report(opened, facts, sources, options.out)
        sys.stderr.write(f"The report is {page}\n")
    if options.json:
        return _write_json(facts[0] if len(facts) == 1 else {"datasets": facts, "sources": sources})
    for of_one in facts:
        for name, value in of_one.items():
            if name not in ("probes", "histograms"):
                say(f"{name.replace('_', ' ')}: {value if isinstance(value, (str, int)) else json.dumps(value)}")
        _say_probes("told from the labels by", of_one["probes"])
    for pair in sources:
        _say_probes(f"{' told from '.join(pair['sources'])} by", pair["probes"])


def train_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Train a model, show how far it is, and write its figures."""
    from ml.training import LICENCE_NOTES, TrainConfig, train

    settings = dict(_key_and_value(text) for text in options.set)
    config = TrainConfig(
        architecture=options.architecture,
        settings=settings,
        seed=options.seed,
        init=_initial(options.init),
        command=shlex.join(["python", "-m", "ml", *_deciding(given)]),
        reuse=options.reuse,
        licence_notes=(*LICENCE_NOTES, *options.licence),
        notes=tuple(options.note),
    )
    datasets = [_dataset(path, stack) for path in options.datasets]

    card = train(config, datasets, options.out, Trail())
    if options.json:
        return _write_json(json.loads(card.to_json()))
    say(f"Model {card.id} in {options.out / 'model'}")
    for level, metrics in (("slice", card.metrics), ("patient", card.patient_metrics)):
        say(f"{level}:")
        say_figures(metrics)
    for control in card.controls:
        say(f"control {control['name'].replace('_', ' ')}: " + (control.get("skipped") or f"AUROC {figure(control['auroc'])}"))
    if card.blocked_because:
        say(card.blocked_because)
    for sentence in (card.protocol, *card.notes):
        say(sentence)


def predict_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Predict scans; a folder is one series. One line each, a scan that cannot be read among them; it is an error if none can."""
    from ml.inference import NOT_HEAD_CT, Predictor

    predictor = Predictor(_model_folder(options.model))
    rows: list[dict[str, Any]] = []
    for path in options.paths:
        row: dict[str, Any] = {
            "path": str(path),
            "probability": None,
            "threshold": predictor.card.threshold,
            "positive": None,
            "error": None,
        }
        try:
            series = read_series(files_of_series(path))
            finding = predictor.predict(series)
            if path.is_dir() and ORDER_GIVEN in series.warnings:
                sys.stderr.write(f"{path}: the pictures carry no position; they were put in order by the last number in their names.\n")
            if finding.refused:
                sys.stderr.write(f"{path}: {NOT_HEAD_CT}\n")
            row |= {"probability": finding.probability, "threshold": finding.threshold, "positive": finding.positive}
        except ImageError as err:
            row["error"] = str(err)
        rows.append(row)
    if options.format == "csv":
        table = csv.DictWriter(sys.stdout, ["path", "probability", "threshold", "positive"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    else:
        _write_json(rows)
    unread = [f"{row['path']}: {row['error']}" for row in rows if row["error"]]
    if len(unread) == len(rows):
        raise ImageError("\n".join(unread))
    sys.stderr.writelines(f"{sentence}\n" for sentence in unread)


def evaluate_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Score a model on a labelled data set."""
    from ml.plots import write_plots
    from ml.scoring import evaluate

    model = _model_folder(options.model)
    read_card(model)  # a model that is none is said before a data set is read
    dataset = _dataset(options.dataset, stack, needs_both_classes=False, keeps_bare=True, on_image=Counter("reading image"))
    result = evaluate(model, dataset, options.out, Counter("scoring image"), threads=os.cpu_count() or 1)
    write_plots(options.out)
    if options.json:
        return _write_json(result)
    for level in ("slice", "patient"):
        say(f"{level}:")
        say_figures(result[level])
    for sentence in (*result["notes"], *result["problems"]):
        say(sentence)
    say(f"metrics.json, predictions.csv, answers.csv and plots are in {options.out}")


def compare_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Show the figures of several runs on what they share, and their differences."""
    from ml.comparison import compare

    result = compare(options.runs)
    if options.json:
        return _write_json(result)
    for level, found in result.items():
        say(f"{level}: {found['n']} in common")
        width = max(len(run["run"]) for run in found["runs"])
        for run in found["runs"]:
            say(f"  {run['run']:{width}}  " + "  ".join(f"{name} {figure(entry)}" for name, entry in run["metrics"].items()))
        for dataset, those in [("all", found), *found.get("by_dataset", {}).items()]:  # a data set may be called all, too
            for difference in those["differences"]:
                shown = "  ".join(f"{name} {figure(difference[name], signed=True)}" for name in ("auroc", "accuracy"))
                say(f"  {dataset}, {those['n']} in common, {difference['run']} minus {difference['minus']}: {shown}")


def triage_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Simulate how much sooner hemorrhages are looked at where a model's answers order the worklist."""
    department = Department(**{name: getattr(options, name) for name in Department.__dataclass_fields__})
    result = simulate(scans_of(_model_folder(options.run_or_model), options.dataset), department, options.seed, Counter("simulating day"))
    if options.json:
        return _write_json(result)
    for sentence in sentences(result):
        say(sentence)


def paper_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Run the paper's experiment, honest and leaked, and write its table and graphs."""
    from ml.paper import plan, run_paper
    from ml.paper.report import write_report

    dataset = _dataset(options.dataset, stack, on_image=Counter("reading image"))
    cells = plan(len(dataset.examples), *([options.only] if options.only else []))

    def say_plan(total: int, done: int, seconds: float) -> None:
        sys.stderr.write(f"{done} of {total} cells done" + (f"; the rest takes about {minutes(seconds)}\n" if done < total else "\n"))

    command = shlex.join(["python", "-m", "ml", *given])
    init = _initial(options.init)
    found = run_paper(
        dataset,
        cells,
        options.out,
        init=init,
        seed=options.seed,
        command=command,
        on_progress=Trail(),
        on_plan=say_plan,
        on_cell=lambda so_far: write_report(so_far, options.out),
    )
    written = write_report(found, options.out)
    if options.json:
        return _write_json(found)
    say((options.out / "table.md").read_text(encoding="utf-8"))
    say("Written: " + ", ".join(str(path) for path in written))


def card_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Write a model's card as Markdown."""
    from ml.model_card import model_card

    sys.stdout.write(model_card(read_card(_model_folder(options.model))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml", description="Brain hemorrhage detection on head CT. Research use only.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explore = commands.add_parser("explore", help="describe data sets (folders or ZIP files), their look and their shortcuts")
    explore.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    explore.add_argument("--out", type=Path, help="folder for a report with pictures (index.html)")
    explore.add_argument("--json", action="store_true", help="write JSON")
    explore.set_defaults(run=explore_command)
    train = commands.add_parser("train", help="train a model; the same command on the same folder continues")
    train.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    train.add_argument("--architecture", required=True, choices=sorted(ARCHITECTURES))
    train.add_argument("--out", type=Path, required=True, help="folder for the training; the model will be in model/")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the architecture")
    train.add_argument("--init", default="starter", help=INIT_HELP)
    train.add_argument("--seed", type=_seed, default=0)
    train.add_argument(
        "--reuse", type=Path, metavar="DIR", help="keep fine-tuned convolutions there for other trainings; changes no number"
    )
    train.add_argument("--note", action="append", default=[], metavar="SENTENCE", help="goes into the model's card")
    train.add_argument("--licence", action="append", default=[], metavar="SENTENCE", help="a licence note for the model's card")
    train.add_argument("--json", action="store_true", help="write the model's card as JSON")
    train.set_defaults(run=train_command)
    predict = commands.add_parser("predict", help="predict scans")
    predict.add_argument("model", help=MODEL_HELP)
    predict.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="an image, or a folder with one series")
    predict.add_argument("--format", choices=("csv", "json"), default="csv")
    predict.set_defaults(run=predict_command)
    evaluate = commands.add_parser("evaluate", help="score a model on a labelled data set; the same command on the same folder continues")
    evaluate.add_argument("model", help=MODEL_HELP)
    evaluate.add_argument("dataset", type=Path, help="a folder or a ZIP file; labels may be empty")
    evaluate.add_argument("--out", type=Path, required=True, help="folder for metrics.json, predictions.csv and plots")
    evaluate.add_argument("--json", action="store_true", help="write the metrics as JSON to standard output too")
    evaluate.set_defaults(run=evaluate_command)
    compare = commands.add_parser("compare", help="figures of several runs on what they share, and paired differences to the first")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder that train or evaluate wrote")
    compare.add_argument("--json", action="store_true", help="write JSON")
    compare.set_defaults(run=compare_command)
    triage = commands.add_parser("triage", help="simulate how much sooner hemorrhages are looked at where answers order the worklist")
    triage.add_argument("run_or_model", metavar="RUN", help=f"a folder that train or evaluate wrote, for its answers; or {MODEL_HELP}")
    triage.add_argument("--dataset", metavar="NAME", help="take the scans of this data set only")
    for setting in fields(Department):
        flag, convert = "--" + setting.name.replace("_", "-"), type(setting.default)
        said = f"{setting.metadata['help']} (default {setting.default:g})"
        triage.add_argument(flag, type=convert, default=setting.default, metavar="N", help=said)
    triage.add_argument("--seed", type=_seed, default=0)
    triage.add_argument("--json", action="store_true", help="write JSON")
    triage.set_defaults(run=triage_command)
    paper = commands.add_parser("paper", help="the paper's experiment, honest and leaked; the same command on the same folder continues")
    paper.add_argument("dataset", type=Path, metavar="DATASET")
    paper.add_argument("--out", type=Path, required=True, help="folder for the tables and the graphs")
    paper.add_argument("--init", default="starter", help=INIT_HELP)
    paper.add_argument("--seed", type=_seed, default=0)
    paper.add_argument("--only", nargs="+", metavar="ARCHITECTURE", help="these architectures alone")
    paper.add_argument("--json", action="store_true", help="write the cells as JSON")
    paper.set_defaults(run=paper_command)
    card = commands.add_parser("card", help="write a model's card as Markdown")
    card.add_argument("model", help=MODEL_HELP)
    card.set_defaults(run=card_command)
    return parser


def _seed(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"it must be a whole number from 0 to {LARGEST_SEED}, not {text!r}")
    return int(text)


def _initial(name: str) -> Any:
    return name if name in ("random", "starter") else _model_folder(name)


def _model_folder(name: str) -> Path:
    return {"starter": STARTER_DIR, "starter-series": STARTER_SERIES_DIR}.get(name, Path(name))


def _deciding(given: list[str]) -> list[str]:
    """Return the arguments that decide what is computed; the sentences for the card stand in the card already."""
    return [word for before, word in zip(["", *given], given, strict=False) if not {before, word} & {"--note", "--licence", "--reuse"}]


def _dataset(path: Path, stack: ExitStack, **how: Any) -> Any:
    from ml.datasets import DatasetError, read_dataset, unpack

    if path.is_file():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hemoscan-")))
        return read_dataset(unpack(path, folder / "dataset"), name=path.stem, **how)
    if not path.exists():
        raise DatasetError(f"There is no data set at {path}.")
    return read_dataset(path, **how)


def _say_probes(what: str, probes: Sequence[dict[str, Any]]) -> None:
    for probe in probes:
        auroc, warning = probe["auroc"], "  above chance" if probe["suspicious"] else ""
        shown = auroc["reason"] if auroc["value"] is None else f"AUROC {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
        say(f"{what} {probe['name']}: {shown}{warning}")


def _key_and_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise SettingError(f"--set needs key=value, not {text!r}.")
    return key, value


def _write_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
