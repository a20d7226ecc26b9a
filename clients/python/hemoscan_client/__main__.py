"""`hemoscan`: submit scans, watch a folder, list results, download reports."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from hemoscan_client.client import Client
from hemoscan_client.errors import HemoscanError
from hemoscan_client.operations import REPORTS, Choices, files_below, key_of
from hemoscan_client.results import Scan
from hemoscan_client.watching import Callbacks, Memory, Watcher

INTERRUPTED = 130
NAMED_BY_ID = Path()
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 for success, 1 if something was refused or
    failed, 2 for an invalid command line.
    """
    options = parser().parse_args(arguments)
    errors = Console(stderr=True, highlight=False)
    try:
        token = options.token_file.read_text().strip() if options.token_file else None
        with Client(options.url, token, patience_s=options.patience) as client:
            run: Callable[[argparse.Namespace, Client, Console], int] = options.run
            return run(options, client, errors)
    except (HemoscanError, OSError) as err:
        errors.print(f"hemoscan: {err}", markup=False)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed namespace holds the function to call as
    `run`.

    One function, because it is a plain list of the commands and their few flags.
    """
    whole = argparse.ArgumentParser(
        prog="hemoscan", description="Hemoscan's client. Research use only, never a diagnosis."
    )
    whole.add_argument("--url", help="the address of the service; default: HEMOSCAN_URL")
    whole.add_argument(
        "--token-file", type=Path, help="a file with an API token; default: HEMOSCAN_TOKEN"
    )
    whole.add_argument(
        "--patience",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="seconds to retry a request while the service is unavailable (%(default)g)",
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "submit", help="submit files and folders; each folder is an upload"
    )
    command.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    _add_choices(command)
    command.add_argument(
        "--again",
        action="store_true",
        help="create new scans, even if the same files were submitted in the last 24 hours",
    )
    command.add_argument("--wait", action="store_true", help="wait until the analysis has finished")
    command.add_argument("--json", action="store_true", help="print the service's response as JSON")
    command.set_defaults(run=submit)

    command = commands.add_parser(
        "watch", help="watch a folder and submit each study once it is complete"
    )
    command.add_argument("folder", type=Path, metavar="FOLDER")
    _add_choices(command)
    command.add_argument(
        "--quiet",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="a study is complete after this many seconds without a change (%(default)g)",
    )
    command.add_argument("--state", type=Path, help="the file that records what was submitted")
    command.set_defaults(run=watch)

    command = commands.add_parser("results", help="list results, the newest first")
    command.add_argument(
        "--since", type=moment, help="2026-11-29, 2026-11-29T14:00+01:00, or 30m, 12h, 7d ago"
    )
    command.add_argument("--json", action="store_true", help="print the service's response as JSON")
    command.set_defaults(run=results)

    command = commands.add_parser("report", help="download a report of a scan")
    command.add_argument("id", metavar="ID")
    kinds = command.add_mutually_exclusive_group(required=True)
    for kind in REPORTS:
        what = "PDF" if kind == "pdf" else f"DICOM {kind.upper()}"
        kinds.add_argument(
            f"--{kind}",
            type=Path,
            nargs="?",
            const=NAMED_BY_ID,
            metavar="FILE",
            help=f"as {what}; without FILE, the file is named after the ID",
        )
    command.set_defaults(run=report)
    return whole


def _add_choices(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--title", default="", help="shown in the worklist; do not use patient names"
    )
    command.add_argument("--stat", action="store_true", help="analyze before all routine scans")
    command.add_argument(
        "--together", action="store_true", help="the images are slices of one scan"
    )
    command.add_argument("--uncut", action="store_true", help="read a film sheet as one slice")
    command.add_argument("--keep-names", action="store_true", help="store file names as titles")


def _choices(options: argparse.Namespace) -> Choices:
    return Choices(options.title, options.stat, options.together, options.uncut, options.keep_names)


def moment(text: str) -> datetime:
    """Parse a time given on the command line; a time without a time zone is in local time.

    Raises:
        argparse.ArgumentTypeError: it is not a valid time.
    """
    if ago := re.fullmatch(r"([0-9]{1,6})([mhd])", text):
        return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as err:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a date such as 2026-11-29 nor a time such as 12h ago."
        ) from err


def submit(options: argparse.Namespace, client: Client, errors: Console) -> int:
    """Submit each folder as one request, and all single files together; print a line for each
    scan.

    The idempotency key of each submission is derived from its files and options, so repeating a
    command after an interruption returns the scans of the files that had already arrived.
    """
    choices = _choices(options)
    folders = [[path] for path in options.paths if path.is_dir()]
    files = [path for path in options.paths if not path.is_dir()]
    jobs = []
    for paths in [*([files] if files else []), *folders]:
        name = ", ".join(path.name for path in paths[:3])
        key = None if options.again else key_of(files_below(paths), choices)
        with _bar(errors, name) as on_sent:
            submitted = client.submit(paths, choices, key=key, on_sent=on_sent)
        if any(job.is_known for job in submitted):
            errors.print(
                f"{name}: submitted before; these are its scans. --again submits it anew.",
                markup=False,
            )
        jobs += submitted
    ids = [job.id for job in jobs]
    if options.wait:
        with errors.status(f"Waiting for {len(ids)} scans …"):
            scans = client.wait(ids)
    else:
        scans = [client.scan(scan_id) for scan_id in ids]
    _print(scans, as_json=options.json)
    return 1 if options.wait and any(scan.status != "done" for scan in scans) else 0


@contextmanager
def _bar(errors: Console, name: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on a terminal during an upload."""
    if not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=errors, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda sent, total: progress.update(task, completed=sent, total=total)


def watch(options: argparse.Namespace, client: Client, errors: Console) -> int:
    """Submit the files of a folder once they stop changing, until interrupted."""
    folder = options.folder.resolve()
    if not folder.is_dir():
        raise HemoscanError(f"There is no folder {folder}.")
    out = Console(highlight=False)
    callbacks = Callbacks(
        on_sent=lambda batch, jobs: out.print(
            f"{batch.name}: submitted as {', '.join(job.id for job in jobs)}", markup=False
        ),
        on_refused=lambda batch, why: errors.print(f"{batch.name}: {why}", markup=False),
        on_wait=lambda batch, why: errors.print(
            f"{batch.name}: {why} It is tried again.", markup=False
        ),
    )
    with Memory(options.state or state_of(folder)) as memory:
        watcher = Watcher(
            client, folder, memory, _choices(options), quiet_s=options.quiet, callbacks=callbacks
        )
        errors.print(f"Watching {folder}; Ctrl-C stops.", markup=False)
        watcher.run()
    return 0


def state_of(folder: Path) -> Path:
    """Return the path of the file that records what was submitted from a folder."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return state / "hemoscan" / f"watch-{name}.sqlite"


def results(options: argparse.Namespace, client: Client, _errors: Console) -> int:
    """List results."""
    _print(list(client.results(options.since)), as_json=options.json)
    return 0


def report(options: argparse.Namespace, client: Client, _errors: Console) -> int:
    """Download a report into a file."""
    kind = next(kind for kind in REPORTS if getattr(options, kind) is not None)
    path: Path = getattr(options, kind)
    if path == NAMED_BY_ID:
        path = Path(options.id + (".pdf" if kind == "pdf" else f".{kind}.dcm"))
    content = client.report(options.id, kind)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
    return 0


def _print(scans: Sequence[Scan], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([scan.raw for scan in scans], indent=2) + "\n")
        return
    out = Console(highlight=False)
    table = Table("scan", "status", "result", "probability", "title", box=None)
    for scan in scans:
        result = scan.result
        shown = (
            (result.state, f"{100 * result.probability:.1f}%")
            if result is not None
            else (scan.error or "", "")
        )
        table.add_row(scan.id, scan.status, *shown, scan.title)
    out.print(table)


if __name__ == "__main__":
    sys.exit(main())
