"""The arguments of `python -m ml`."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

from ml.catalogue import ARCHITECTURES
from ml.evaluation.worklist import Department

MODEL_HELP = "a model folder, or starter, or starter-series"
INIT_HELP = (
    "initial weights: random, starter (a shipped model that was not trained on the images,"
    " else random),"
    " starter-series, a file or a model folder"
)
LARGEST_SEED = 2**31 - 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed namespace holds the `command`.

    One function, because it is a list: each command with its few flags after the other.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ml", description="Brain hemorrhage detection on head CT. Research use only."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    explore = commands.add_parser(
        "explore",
        help="describe data sets (folders or ZIP files), their appearance and shortcuts in them",
    )
    explore.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    explore.add_argument("--out", type=Path, help="folder for a report with images (index.html)")
    explore.add_argument("--json", action="store_true", help="write JSON")
    train = commands.add_parser(
        "train", help="train a model; repeat the command on the same folder to resume"
    )
    train.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    train.add_argument("--architecture", required=True, choices=sorted(ARCHITECTURES))
    train.add_argument(
        "--out",
        type=Path,
        required=True,
        help="output folder; the model will be in its model/ subfolder",
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the architecture",
    )
    train.add_argument("--init", default="starter", help=INIT_HELP)
    train.add_argument("--seed", type=_seed, default=0)
    train.add_argument(
        "--reuse",
        type=Path,
        metavar="DIR",
        help="cache fine-tuned convolutions in this folder for other training runs; results do not"
        " change",
    )
    train.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="SENTENCE",
        help="a note for the model's card",
    )
    train.add_argument(
        "--license",
        action="append",
        default=[],
        metavar="SENTENCE",
        help="a license note for the model's card",
    )
    train.add_argument("--json", action="store_true", help="write the model's card as JSON")
    predict = commands.add_parser("predict", help="predict scans")
    predict.add_argument("model", help=MODEL_HELP)
    predict.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="an image, or a folder with one series"
    )
    predict.add_argument("--format", choices=("csv", "json"), default="csv")
    predict.add_argument(
        "--json", action="store_const", const="json", dest="format", help="as --format json"
    )
    predict.add_argument(
        "--outline",
        type=Path,
        metavar="FILE",
        help="write the outline of one scan as NIfTI (.nii.gz): 1 inside the hemorrhage, 0"
        " elsewhere; needs a model that outlines",
    )
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a model on a labeled data set; repeat the command on the same folder to"
        " resume",
    )
    evaluate.add_argument("model", help=MODEL_HELP)
    evaluate.add_argument(
        "dataset", type=Path, help="a folder or a ZIP file; labels may be missing"
    )
    evaluate.add_argument(
        "--out", type=Path, required=True, help="folder for metrics.json, predictions.csv and plots"
    )
    evaluate.add_argument(
        "--json", action="store_true", help="write the metrics as JSON to standard output too"
    )
    calibrate = commands.add_parser(
        "calibrate",
        help="calibrate a model to a site with at least 20 of its confirmed scans, with and without"
        " hemorrhage; writes a model folder",
    )
    calibrate.add_argument("model", help=MODEL_HELP)
    calibrate.add_argument("dataset", type=Path, help="a folder or a ZIP file with labels")
    calibrate.add_argument(
        "--out", type=Path, required=True, help="folder for the model and its evaluation"
    )
    calibrate.add_argument("--json", action="store_true", help="write the figures as JSON")
    simulate = commands.add_parser(
        "simulate-calibration",
        help="how much 20, 50 and 100 confirmed scans of a site would help, for each data set of a"
        " training with folds by data set",
    )
    simulate.add_argument("run", type=Path, metavar="RUN", help="output folder of train")
    ship = commands.add_parser(
        "ship-answers",
        help="write the out-of-fold predictions of a training run without file and patient"
        " names, to"
        " ship with its model",
    )
    ship.add_argument("run", type=Path, metavar="RUN", help="output folder of train")
    ship.add_argument(
        "datasets",
        type=Path,
        nargs="*",
        metavar="DATASET",
        help="what it was trained on; only where its predictions.csv has no column image",
    )
    ship.add_argument("--out", type=Path, required=True, help="the file, predictions.csv")
    compare = commands.add_parser(
        "compare",
        help="compare runs on the images they share, with paired differences from the first",
    )
    compare.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a folder that train or evaluate wrote"
    )
    compare.add_argument("--json", action="store_true", help="write JSON")
    worklist = commands.add_parser(
        "worklist",
        help="simulate how much sooner hemorrhages are read when the model prioritizes the"
        " worklist",
    )
    worklist.add_argument(
        "run_or_model",
        metavar="RUN",
        help=f"output folder of train or evaluate, for its predictions; or {MODEL_HELP}",
    )
    worklist.add_argument("--dataset", metavar="NAME", help="use only the scans of this data set")
    for setting in fields(Department):
        flag, convert = "--" + setting.name.replace("_", "-"), type(setting.default)
        text = f"{setting.metadata['help']} (default {setting.default:g})"
        worklist.add_argument(flag, type=convert, default=setting.default, metavar="N", help=text)
    worklist.add_argument("--seed", type=_seed, default=0)
    worklist.add_argument("--json", action="store_true", help="write JSON")
    paper = commands.add_parser(
        "paper",
        help=(
            "the paper's experiment, honest and leaked; repeat the command on the same folder to"
            " resume"
        ),
    )
    paper.add_argument("dataset", type=Path, metavar="DATASET")
    paper.add_argument(
        "--out", type=Path, required=True, help="folder for the tables and the graphs"
    )
    paper.add_argument("--init", default="starter", help=INIT_HELP)
    paper.add_argument("--seed", type=_seed, default=0)
    paper.add_argument(
        "--only", nargs="+", metavar="ARCHITECTURE", help="these architectures alone"
    )
    paper.add_argument("--json", action="store_true", help="write the cells as JSON")
    results = commands.add_parser(
        "results", help="add the metrics of finished runs to the result tables"
    )
    results.add_argument(
        "runs",
        nargs="+",
        metavar="RUN=PROTOCOL",
        help='a folder, and a label such as "5-fold by patient"',
    )
    results.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder of the tables, one per data set",
    )
    card = commands.add_parser("card", help="write a model's card as Markdown")
    card.add_argument("model", help=MODEL_HELP)
    return parser


def _seed(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(
            f"it must be a whole number from 0 to {LARGEST_SEED}, not {text!r}"
        )
    return int(text)
