"""The result of a replay, as sentences for pages and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from webapp.display import listed, name_of_version
from webapp.models import JobStatus, Replay

PARTS = {
    "probability": "the probability",
    "state": "the result",
    "slices": "the slice probabilities",
    "types": "the types of hemorrhage",
    "outlines": "the outline",
}
"""The parts of a prediction, as `worker.replay` compares them."""
NOT_COMPARED = "Not compared, because the original is not stored: {}."
RECORDED_SINCE = (
    "The software and machine that produced this result were not recorded. They have been"
    " recorded since version 0.1.0."
)


@dataclass(frozen=True)
class ReplayView:
    """A replay in a form for display.

    Attributes:
        outcome: "same", "different", "failed", "canceled" or "waiting".
        headline: the outcome as a sentence.
        details: sentences on what differs, what has changed and what is unknown.
        not_compared: the parts of the result that are not stored, so that nothing is known about
            them.
    """

    outcome: str
    headline: str
    details: Sequence[str] = ()
    not_compared: Sequence[str] = ()


def replay_view(replay: Replay) -> ReplayView:
    """Return the result of a replay."""
    version = name_of_version(replay.version)
    if not JobStatus(replay.status).is_final:
        return ReplayView(
            "waiting", f"Waiting to be recomputed with {version}, after all new scans."
        )
    if replay.status == JobStatus.CANCELLED:
        return ReplayView("canceled", "Canceled before it was recomputed.")
    if replay.status == JobStatus.FAILED or replay.result is None:
        return ReplayView("failed", f"Could not be recomputed: {replay.error}")
    result = replay.result
    not_compared = list(result["not_kept"])
    if replay.is_same and not_compared:
        return ReplayView(
            "same",
            f"Reproduced exactly with {version} as far as it could be compared."
            f" {NOT_COMPARED.format(parts_listed(not_compared))}",
            _not_known(result),
            not_compared,
        )
    if replay.is_same:
        return ReplayView("same", f"Reproduced exactly with {version}.", _not_known(result))
    unknown = [NOT_COMPARED.format(parts_listed(not_compared))] if not_compared else []
    return ReplayView(
        "different",
        f"Not reproduced with {version}. Different: {parts_listed(result['differs'])}.",
        [*_differences(result), *_reasons(result), *unknown, *_not_known(result)],
        not_compared,
    )


def parts_listed(names: Sequence[str]) -> str:
    """Return parts of a prediction as an enumeration."""
    return listed([PARTS[name] for name in names], "and")


def _differences(result: dict[str, Any]) -> list[str]:
    sentences = []
    for name in ("probability", "threshold"):
        before, now = result[name]
        if before != now:
            sentences.append(f"{name.capitalize()}: {before!r} before, {now!r} now.")
    if result["slices_apart"]:
        numbers = [str(slice_["index"] + 1) for slice_ in result["slices"]]
        more = result["slices_apart"] - len(numbers)
        sentences.append(
            f"{result['slices_apart']} of {result['of_slices']} slices differ:"
            f" {', '.join(numbers)}{f' and {more} more' if more else ''}."
        )
    return sentences


def _reasons(result: dict[str, Any]) -> list[str]:
    if result["changes"] is None:
        return []  # `_not_known` reports this.
    if not result["changes"]:
        return ["The recorded software and machine are the same, so something else has changed."]
    return [f"{name}: {before} before, {now} now." for name, before, now in result["changes"]]


def _not_known(result: dict[str, Any]) -> list[str]:
    return [RECORDED_SINCE] if result["changes"] is None else []
