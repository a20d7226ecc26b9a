"""The fuzzing report: a Markdown page with counts by format and outcome, and a one-line verdict."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from bench.fuzz.service import Tally

INTRODUCTION = """# Fuzzing: what was sent and what came of it

`{command}` on {date}; {machine}; {minutes:.0f} minutes.

Valid files of each format (phantoms, pydicom's test files and, if present, those of `../shared`)
are mutated in one to three places and uploaded one at a time: most through the API, one in four
through the web form with unusual text in its fields. The worker reads what was accepted, with the
shipped models; the page of every scan is opened, and the scan is deleted again. After each batch of
eight, every scan must have one verdict or an error message, the storage must hold exactly the files
that rows name, and the spool and work folders must be empty. An error in the log counts as a
failure, as do an exception in the decoder that does not become an error message and text that a
page renders as markup. A ZIP file may become several scans.
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
    )
    return f"{introduction}{_uploads(tally)}{_requests(tally)}\n{verdict(tally)}\n"


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
        " 500 or more, no orphaned file, every scan with a verdict or an error message; an upload"
        f" took at most {tally.upload_mb:.0f} MB, the decoder {tally.decoder_mb:.0f} MB."
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


def _requests(tally: Tally) -> str:
    statuses = sorted({status for _, status in tally.statuses})
    lines = [
        "\n## Requests\n",
        f"| operation | {' | '.join(map(str, statuses))} |",
        "|---" * (len(statuses) + 1) + "|",
    ]
    for operation in sorted({operation for operation, _ in tally.statuses}):
        lines.append(
            f"| `{operation}` |"
            f" {' | '.join(str(tally.statuses[operation, status] or '') for status in statuses)} |"
        )
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
