"""Send malformed input, and check that Hemoscan rejects it, processes it, or fails with an error
message.

    python -m bench.fuzz [--inputs 10000] [--requests 50] [--seed 1] [--report FILE] [--keep FOLDER]

`--inputs` uploads are valid files of every kind (PNG, JPEG, DICOM, NIfTI, ZIP) with one to three
mutations. One in four is sent by the web form, with unusual text in its fields; the others use the
API. A tenth as many are DICOMweb messages (STOW-RS) whose files, parts or separation are corrupted,
and a twentieth are malformed associations with the DICOM listener.
The worker then reads what was accepted, with the shipped models, and the results are opened.

A second instance has rows of every kind and is put back after each change. `--requests` times, each
route that takes a body is sent a form with fields of unexpected types, and each page and DICOMweb
resource an unusual query. Schemathesis generates as many valid and as many invalid requests for
each operation of the OpenAPI document, and also checks that the responses conform to it. All of
this is done as a user, as an administrator and without a login.

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
from bench.fuzz.dicomweb import store_corrupted_studies
from bench.fuzz.dimse import attack_listener
from bench.fuzz.forms import post_odd_types
from bench.fuzz.page_forms import forms_in_pages
from bench.fuzz.queries import ask_odd_queries
from bench.fuzz.report import report
from bench.fuzz.rows import rows
from bench.fuzz.seeds import seeds
from bench.fuzz.service import service
from bench.fuzz.tally import Tally


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
        help="valid requests per operation of the API, and as many invalid ones, forms and queries;"
        " 0 for one form and one query per route, and nothing else (default 50)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="random seed for files, mutations and requests (default 1)",
    )
    parser.add_argument("--report", type=Path, help="also write the report to this file")
    parser.add_argument(
        "--keep",
        type=Path,
        help="save uploads that broke something, and what they broke, in this folder",
    )
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    tally, began = Tally(), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="hemoscan-fuzz-") as home,
        service(Path(home), tally) as hemoscan,
    ):
        valid = seeds()
        upload_spoiled_files(hemoscan, valid, options.inputs, options.seed, tally, options.keep)
        store_corrupted_studies(hemoscan, valid, options.inputs // 10, options.seed, tally)
        with rows(Path(home), tally) as asked:
            forms = forms_in_pages(asked)
            post_odd_types(asked, forms, valid, max(options.requests, 1), options.seed)
            ask_odd_queries(asked, forms, max(options.requests, 1), options.seed)
            if options.requests:
                ask_everything(asked, options.requests, options.seed)
        slices = [sound.content for sound in valid if sound.kind == "DICOM"]
        attack_listener(hemoscan.app, Path(home), slices, options.inputs // 20, options.seed, tally)
    page = report(tally, options, time.monotonic() - began)
    sys.stdout.write(page)
    if options.keep:
        (options.keep / "violations.txt").write_text("\n\n".join(tally.broken), encoding="utf-8")
    if options.report:
        options.report.write_text(page, encoding="utf-8")
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
