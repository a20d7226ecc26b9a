"""Send malformed input, and check that Hemoscan rejects it, processes it, or fails with an error
message.

    python -m bench.fuzz [--inputs 10000] [--requests 50] [--seed 1] [--report FILE] [--keep FOLDER]

`--inputs` uploads are valid files of every kind (PNG, JPEG, DICOM, NIfTI, ZIP) with one to three
mutations. One in four is sent by the web form, with unusual text in its fields; the others use the
API. The worker then reads what was accepted, with the shipped models, and the scans' pages are
opened. Each route that takes a body, of the pages (including administrators') and of the API, gets
as many requests with fields of unexpected types: text as a file, JSON of every type, lone
surrogates, duplicate fields. Schemathesis generates `--requests` valid and as many invalid requests
for each operation of the OpenAPI document, and also checks that the responses conform to it.
Everything runs in one process, on SQLite; only decoding has its own process, as always. The same
seed sends the same input. Linux only. The last line is the verdict; the exit status is 1 if a
guarantee is violated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.fuzz.api import ask_everything
from bench.fuzz.campaign import upload_spoiled_files
from bench.fuzz.pages import post_odd_types
from bench.fuzz.report import report
from bench.fuzz.service import Tally, service


def main() -> int:
    """Send uploads and requests; print the report and the verdict; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs", type=int, default=10_000, help="mutated uploads (default 10000)"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=50,
        help="valid requests per operation of the API, and as many invalid ones; 0 for none"
        " (default 50)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="random seed for files, mutations and requests (default 1)",
    )
    parser.add_argument("--report", type=Path, help="also write the report to this file")
    parser.add_argument(
        "--keep", type=Path, help="save uploads that broke something in this folder"
    )
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    tally, began = Tally(), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="hemoscan-fuzz-") as home,
        service(Path(home), tally) as hemoscan,
    ):
        upload_spoiled_files(hemoscan, options.inputs, options.seed, tally, options.keep)
        post_odd_types(hemoscan, max(options.requests, 1), options.seed, tally)
        if options.requests:
            ask_everything(hemoscan, options.requests, options.seed, tally)
    page = report(tally, options, time.monotonic() - began)
    sys.stdout.write(page)
    if options.report:
        options.report.write_text(page, encoding="utf-8")
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
