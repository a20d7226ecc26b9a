"""The fuzzing report: a Markdown page with counts by format and outcome, and a one-line verdict."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from bench.fuzz.dicomweb import DICOMWEB
from bench.fuzz.tally import HANGS_S, Tally

INTRODUCTION = """# Fuzzing: what was sent and what came of it

`{command}` on {date}; {machine}; {minutes:.0f} minutes.

Valid files of each format (phantoms, pydicom's test files and, if present, those of `../shared`)
are mutated in one to three places and uploaded one at a time: most through the API, one in four
through the web form with unusual text in its fields. The worker reads what was accepted, with the
shipped models; the page of every scan is opened, and the scan is deleted again. After each batch of
eight, every scan must have one verdict or an error message, the storage must hold exactly the files
that rows name, and the spool and work folders must be empty. A ZIP file may become several scans.
DICOMweb messages with corrupted files, parts or boundaries go the same way, and the reports of
their scans are made and retrieved. The DICOM listener gets malformed associations (lengths, kinds
and order of PDUs, transfer syntaxes, cut data sets, half requests, silence, resets), several at a
time; meanwhile it must answer each C-ECHO within a second, and afterwards no part of an instance
may be left, and every study must have scans or a message.

Requests, forms and queries are sent to an instance with rows of every kind, in every state, which
is put back after each change: schemathesis generates requests from the OpenAPI document, forms are
those of the pages with up to three changed fields, or fields of any type. Each is sent by an
administrator and by a user (the owner of scans), some by others.

A failure is: a status of 500 or more, an error in the log, a response that violates the OpenAPI
document or takes more than {hangs} seconds, a file that no row needs, an exception in the decoder
that does not become an error message, and text that a page renders as markup.
"""
OUTCOMES = ("refused", "done", "failed")
MOST_SENTENCES = 12
"""Number of most frequent error messages listed per format."""


def report(tally: Tally, options: argparse.Namespace, took_s: float) -> str:
    """Return the page, which ends with the verdict."""
    introduction = INTRODUCTION.format(
        command=(
            f"python -m bench.fuzz --inputs {options.inputs} --requests {options.requests} --seed"
            f" {options.seed}"
        ),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=(
            f"{platform.machine()}{_vectors()}, {os.cpu_count()} cores, Python"
            f" {platform.python_version()}"
        ),
        minutes=took_s / 60,
        hangs=HANGS_S,
    )
    return (
        f"{introduction}{_uploads(tally)}{_dicomweb(tally)}{_dimse(tally)}{_requests(tally)}\n"
        f"{verdict(tally)}\n"
    )


def verdict(tally: Tally) -> str:
    """Return the one line."""
    requests = tally.statuses.total()
    if tally.broken:
        kinds = Counter(complaint.splitlines()[0] for complaint in tally.broken)
        complaints = "; ".join(
            f"{complaint} ({count})" if count > 1 else complaint
            for complaint, count in kinds.most_common(5)
        )
        return f"FAILED (violations: {len(tally.broken)}): {complaints}."
    return (
        f"Passed: {tally.inputs.total()} uploads, {requests} requests, no response with a status of"
        f" 500 or more or after more than {HANGS_S} s, no orphaned file, every scan with a verdict"
        f" or an error message; an upload took at most {tally.upload_mb:.0f} MB, the decoder"
        f" {tally.decoder_mb:.0f} MB."
    )


def _uploads(tally: Tally) -> str:
    lines = [
        "\n## Uploads\n",
        "| format | uploads | rejected | scans done | scans failed, with a message |",
        "|---|---|---|---|---|",
    ]
    for kind in sorted(tally.inputs):
        counts = " | ".join(str(tally.outcomes[kind, outcome]) for outcome in OUTCOMES)
        lines.append(f"| {kind} | {tally.inputs[kind]} | {counts} |")
    deaths = ", ".join(
        f"{count} with status {status}" for status, count in sorted(tally.deaths.items())
    )
    replaced = f"{deaths}. Their scans failed with an error message" if deaths else "none"
    lines += [
        "",
        (
            f"- Memory: an upload added at most {tally.upload_mb:.0f} MB to its process; the"
            f" decoder process took at most {tally.decoder_mb:.0f} MB, resident."
        ),
        f"- Decoder processes that had to be replaced: {replaced}.",
        "\nThe most frequent error messages for each format, with N in place of numbers:\n",
    ]
    for kind in sorted(tally.inputs):
        sentences = [
            (count, sentence)
            for (of_kind, sentence), count in tally.sentences.most_common()
            if of_kind == kind
        ]
        lines += [
            f"- {kind}, {count} times: {sentence}" for count, sentence in sentences[:MOST_SENTENCES]
        ]
    return "\n".join(lines) + "\n"


def _dicomweb(tally: Tally) -> str:
    counts = sorted(
        (outcome, count) for (kind, outcome), count in tally.outcomes.items() if kind == DICOMWEB
    )
    listed = ", ".join(f"{outcome}: {count}" for outcome, count in counts)
    return f"\n## What came of DICOMweb messages\n\n{listed}.\n" if counts else ""


def _dimse(tally: Tally) -> str:
    if not tally.associations:
        return ""
    return (
        f"\n## Malformed DICOM associations\n\n{tally.associations} associations, several at a"
        f" time; {tally.received_studies} studies were received. The slowest C-ECHO among them took"
        f" {tally.slowest_echo_s:.2f} s.\n"
    )


def _requests(tally: Tally) -> str:
    by_caller: Counter[tuple[str, int]] = Counter()
    by_operation: Counter[tuple[str, int]] = Counter()
    for (caller, operation, status), count in tally.statuses.items():
        by_caller[caller, status] += count
        by_operation[f"`{operation}`", status] += count
    took_s, slowest = tally.slowest
    return (
        "\n## Requests\n\n"
        + _table("caller", by_caller)
        + f"\nThe slowest response took {took_s:.1f} s: `{slowest}`.\n\n"
        + _table("operation", by_operation)
    )


def _table(what: str, counts: Counter[tuple[str, int]]) -> str:
    """Return a table of the number of responses with each status."""
    statuses = sorted({status for _, status in counts})
    lines = [
        f"| {what} | {' | '.join(map(str, statuses))} |",
        "|---" * (len(statuses) + 1) + "|",
        *(
            f"| {name} | {' | '.join(str(counts[name, status] or '') for status in statuses)} |"
            for name in sorted({name for name, _ in counts})
        ),
    ]
    return "\n".join(lines) + "\n"


def _vectors() -> str:
    """Return the widest vector instructions of this CPU, which decoders and models use."""
    known = Path("/proc/cpuinfo").read_text()
    return next(
        (
            f" with {name.upper()}"
            for name in ("avx512f", "avx2")
            if re.search(rf"\b{name}\b", known)
        ),
        "",
    )
