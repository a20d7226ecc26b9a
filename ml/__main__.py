"""The command line: `python -m ml explore|train|predict|card`."""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ml.artifacts import ArtifactError, read_card
from ml.catalogue import ARCHITECTURES, STARTER_DIR, SettingError
from ml.images import ImageError, read_series

IMAGES_OF_A_FOLDER = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".gz", ""}


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
    return 0


def explore_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Describe a data set."""
    from ml.datasets import explore

    facts = explore(_dataset(options.dataset, stack))
    if options.json:
        return _write_json(facts)
    for name, value in facts.items():
        _say(f"{name.replace('_', ' ')}: {value if isinstance(value, (str, int)) else json.dumps(value)}")


def train_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Train a model, show how far it is, and write its figures."""
    from ml.training import LICENCE_NOTES, Progress, TrainConfig, train

    settings = dict(_key_and_value(text) for text in options.set)
    config = TrainConfig(
        architecture=options.architecture,
        settings=settings,
        seed=options.seed,
        init=options.init if options.init in ("random", "starter") else Path(options.init),
        command=shlex.join(["python", "-m", "ml", *_without_sentences(given)]),
        licence_notes=(*LICENCE_NOTES, *options.licence),
        notes=tuple(options.note),
    )
    datasets = [_dataset(path, stack) for path in options.datasets]

    def show(progress: Progress) -> None:
        left = "" if progress.eta_s is None else f", {_minutes(progress.eta_s)} left"
        figures = "".join(f"  {name} {value:.3g}" for name, value in progress.metrics.items())
        sys.stderr.write(f"\r\033[K{progress.fraction:4.0%} {progress.stage}{left}{figures}")
        sys.stderr.flush()

    card = train(config, datasets, options.out, show)
    sys.stderr.write("\n")
    if options.json:
        return _write_json(json.loads(card.to_json()))
    _say(f"Model {card.id} in {options.out / 'model'}")
    for name, figure in card.metrics.items():
        if figure["value"] is None:
            _say(f"{name:12} –      ({figure['reason']})")
        else:
            _say(f"{name:12} {figure['value']:.3f}  (95 % interval {figure['low']:.3f} to {figure['high']:.3f}, n = {figure['n']})")
    for sentence in (card.protocol, *card.notes):
        _say(sentence)


def predict_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Predict scans; a folder is one series. One line each, a scan that cannot be read among them."""
    from ml.inference import Predictor

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
            finding = predictor.predict(read_series(list(_files_of(path))))
            row |= {"probability": finding.probability, "threshold": finding.threshold, "positive": finding.positive}
        except ImageError as err:
            row["error"] = str(err)
        rows.append(row)
    if options.format == "json":
        return _write_json(rows)
    table = csv.DictWriter(sys.stdout, list(rows[0]))
    table.writeheader()
    table.writerows(rows)


def card_command(options: argparse.Namespace, stack: ExitStack, given: list[str]) -> None:
    """Write a model's card as Markdown."""
    from ml.model_card import model_card

    sys.stdout.write(model_card(read_card(_model_folder(options.model))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml", description="Brain hemorrhage detection on head CT. Research use only.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explore = commands.add_parser("explore", help="describe a data set (a folder or a ZIP file)")
    explore.add_argument("dataset", type=Path)
    explore.add_argument("--json", action="store_true", help="write JSON")
    explore.set_defaults(run=explore_command)
    train = commands.add_parser("train", help="train a model; the same command on the same folder continues")
    train.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    train.add_argument("--architecture", required=True, choices=sorted(ARCHITECTURES))
    train.add_argument("--out", type=Path, required=True, help="folder for the training; the model will be in model/")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the architecture")
    train.add_argument("--init", default="starter", help="initial weights: random, starter, a .npz file or a model folder")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--note", action="append", default=[], metavar="SENTENCE", help="goes into the model's card")
    train.add_argument("--licence", action="append", default=[], metavar="SENTENCE", help="a licence note for the model's card")
    train.add_argument("--json", action="store_true", help="write the model's card as JSON")
    train.set_defaults(run=train_command)
    predict = commands.add_parser("predict", help="predict scans")
    predict.add_argument("model", help="a model folder, or starter")
    predict.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="an image, or a folder with one series")
    predict.add_argument("--format", choices=("csv", "json"), default="csv")
    predict.set_defaults(run=predict_command)
    card = commands.add_parser("card", help="write a model's card as Markdown")
    card.add_argument("model", help="a model folder, or starter")
    card.set_defaults(run=card_command)
    return parser


def _model_folder(name: str) -> Path:
    return STARTER_DIR if name == "starter" else Path(name)


def _without_sentences(given: list[str]) -> list[str]:
    """Return the arguments that decide what is computed; the sentences for the card stand in the card already."""
    return [word for before, word in zip(["", *given], given, strict=False) if not {before, word} & {"--note", "--licence"}]


def _dataset(path: Path, stack: ExitStack) -> Any:
    from ml.datasets import DatasetError, read_dataset, unpack

    if path.is_file():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hemoscan-")))
        return read_dataset(unpack(path, folder / "dataset"), name=path.stem)
    if not path.exists():
        raise DatasetError(f"There is no data set at {path}.")
    return read_dataset(path)


def _files_of(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix.lower() in IMAGES_OF_A_FOLDER)


def _key_and_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise SettingError(f"--set needs key=value, not {text!r}.")
    return key, value


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _write_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
