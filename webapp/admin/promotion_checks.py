"""Checks that an administrator sees before a version goes live, and `promote_as_admin`, which
enforces them: a version that is worse, or that could not be compared, needs a typed confirmation
(`require_confirmation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from webapp.admin.comparisons import (
    BETTER,
    NOT_COMPARABLE,
    NOT_WORSE,
    WORSE,
    Compared,
    compared_by_patient,
    results_between,
    verdict_of,
)
from webapp.admin.operating_points import chosen_for
from webapp.display import name_of_version, percent
from webapp.learning.shadow_figures import seen_in_shadow
from webapp.models import (
    ModelVersion,
    OperatingPoint,
    Promotion,
    PromotionRefused,
    live_version,
    newest_promotion,
    promote,
    require_promotable,
)

FIRST = "first"
"""The verdict if no version of this kind is live."""
PHRASES = {
    WORSE: "promote although it is worse",
    NOT_COMPARABLE: "promote although it is not comparable",
}
SUMMARIES = {
    FIRST: "No version of this kind is live, so there is nothing to compare with.",
    BETTER: "Better than the live version on the same images.",
    NOT_WORSE: "Not shown to be worse than the live version on the same images.",
    WORSE: "Worse than the live version on the same images.",
    NOT_COMPARABLE: "Not comparable with the live version.",
}
PAGE_IS_OLD = (
    "This page does not say which version was live when it was shown. Please open it again."
)
NONE_LIVE = "none"
PERMUTED = "permuted"


@dataclass(frozen=True)
class Decision:
    """The decision of an administrator to promote a version.

    Attributes:
        by_id, reason, point: as `webapp.models.promote` takes them.
        seen: the return value of `mark_of_live` when the administrator decided.
        confirmation: the text typed, if the checklist requires one.
    """

    by_id: str | None
    reason: str
    point: OperatingPoint | None
    seen: str = ""
    confirmation: str = ""


@dataclass(frozen=True)
class Check:
    """One line of the checklist; `passed` is None if unknown."""

    name: str
    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class Checklist:
    """The checks of a candidate against the live version.

    Attributes:
        live: the live version; None if there is none.
        verdict: a key of `SUMMARIES`.
        compared: the comparison's results, one for each source.
        checks: the lines of the checklist.
    """

    live: ModelVersion | None
    verdict: str
    compared: Sequence[Compared]
    checks: Sequence[Check]

    @property
    def phrase(self) -> str | None:
        """The phrase that must be typed to promote; None if none is required."""
        return PHRASES.get(self.verdict)

    def evidence(self, confirmation: str) -> dict[str, Any]:
        """Return the parts that are stored with the promotion."""
        return {
            "verdict": self.verdict,
            "summary": SUMMARIES[self.verdict],
            "live": {"id": self.live.id, "card_id": self.live.card_id} if self.live else None,
            "sources": [
                {"source": source.source, "verdict": source.verdict, "sentence": source.sentence}
                for source in self.compared
            ],
            "checks": [asdict(check) for check in self.checks],
            "typed": confirmation if self.phrase else None,
        }


def checklist_of(version: ModelVersion) -> Checklist:
    """Return the checklist of a version that is not live."""
    live = live_version(version.reads)
    compared = compared_by_patient(results_between(version, live) or []) if live else []
    verdict = verdict_of(compared) if live else FIRST
    return Checklist(
        live,
        verdict,
        compared,
        [
            _comparison_check(verdict),
            _patient_check(version.card),
            _controls_check(version),
            _export_check(version.card),
            _point_check(version, live),
            _shadow_check(version, live),
        ],
    )


def _comparison_check(verdict: str) -> Check:
    passed = {WORSE: False, NOT_COMPARABLE: None}.get(verdict, True)
    return Check("Not worse than the live version", passed, SUMMARIES[verdict])


def _patient_check(card: Mapping[str, Any]) -> Check:
    name = "Evaluated by patient"
    area = (card.get("patient_metrics") or {}).get("auroc") or {}
    if area.get("value") is None:
        reason = area.get("reason") or "its card has figures by slice only"
        return Check(name, False, f"No AUROC by patient: {reason}.")
    data = card["data"]
    if data.get("scans") is not None and data["scans"] == data.get("judged"):
        return Check(name, None, "No image has a patient ID, so each counts as a separate patient.")
    return Check(name, True, f"AUROC by patient {area['value']:.3f}, n = {area['n']}.")


def _controls_check(version: ModelVersion) -> Check:
    name = "Controls run and clean"
    if version.blocked_because or version.card.get("blocked_because"):
        return Check(name, False, version.blocked_because or version.card["blocked_because"])
    run = {control["name"] for control in version.card.get("controls") or () if _was_run(control)}
    if PERMUTED not in run:
        return Check(
            name, None, "The control with shuffled labels was not run, so leakage is not ruled out."
        )
    return Check(name, True, f"{len(run)} controls were run; shuffled labels give no signal.")


def _was_run(control: Mapping[str, Any]) -> bool:
    return not control.get("skipped")


def _export_check(card: Mapping[str, Any]) -> Check:
    check = card["export_check"]
    difference = check.get("largest_difference")
    shown = "an unknown amount" if difference is None else _written_out(difference)
    sentence = f"The exported model’s probabilities differ from the trained one’s by {shown}"
    limit = _written_out(check["limit"])
    return Check("Export parity", bool(check["passed"]), f"{sentence}; the limit is {limit}.")


def _written_out(small: float) -> str:
    """Format a small number with two digits and without an exponent."""
    return format(Decimal(f"{small:.2g}"), "f")


def _point_check(version: ModelVersion, live: ModelVersion | None) -> Check:
    name, point = "Operating point", chosen_for(version)
    if not point.meaning:
        return Check(name, None, f"{point.name.capitalize()}. There are no figures per 100 scans.")
    beside = chosen_for(live).in_short if live else ""
    now = f" The live version: {beside}" if beside else ""
    return Check(name, True, f"{point.name.capitalize()}. {point.in_short}{now}")


def _shadow_check(version: ModelVersion, live: ModelVersion | None) -> Check:
    name = "In shadow mode beside the live version"
    seen = seen_in_shadow(version, live) if live else None
    if seen is None or seen.share is None:
        return Check(name, None, "It has not analyzed any live scan in shadow mode.")
    return Check(
        name,
        True,
        f"Of {seen.n} live scans, {percent(seen.share)} have the same result (95% Wilson"
        f" interval {percent(seen.low)} to {percent(seen.high)}). Hemorrhage suspected by the"
        f" candidate only: {seen.only_candidate}; by the live version only: {seen.only_live}.",
    )


def mark_of_live(reads: str) -> str:
    """Return a mark of the live version and its operating point, to detect changes after a page was
    displayed.
    """
    newest = newest_promotion(reads)
    return str(newest.id) if newest else NONE_LIVE


def promote_as_admin(version: ModelVersion, decision: Decision) -> Promotion:
    """Promote a version for an administrator, or change the operating point of the live one; the
    caller commits.

    Raises:
        PromotionRefused: the live version has changed since, the confirmation is missing, or the
            version may not be promoted.
    """
    newest = newest_promotion(version.reads, lock=True)
    require_unchanged(newest, decision.seen)
    decided = decision.by_id, decision.reason, decision.point
    if newest is not None and newest.version_id == version.id:
        return promote(version, *decided)
    require_promotable(version, decision.reason, decision.point)
    checklist = checklist_of(version)
    require_confirmation(checklist, decision.confirmation)
    return promote(version, *decided, checklist.evidence(decision.confirmation.strip()))


def require_unchanged(newest: Promotion | None, seen: str) -> None:
    """Refuse a promotion if the live version, or its operating point, has changed since the
    decision.

    Raises:
        PromotionRefused: somebody else has promoted a version meanwhile, or this cannot be
            determined.
    """
    if newest is None or seen == str(newest.id):
        return
    if not seen:
        raise PromotionRefused(PAGE_IS_OLD)
    who = newest.by.username if newest.by else "Setup"
    raise PromotionRefused(
        f"{who} promoted {name_of_version(newest.version)} at {newest.at:%H:%M:%S} UTC, after"
        f" this page was shown (“{newest.reason}”). Compare with that version, then decide again."
    )


def require_confirmation(checklist: Checklist, confirmation: str) -> None:
    """Refuse to promote a version that is worse or not comparable unless the confirmation phrase
    was typed.

    Raises:
        PromotionRefused: the phrase was not typed.
    """
    phrase = checklist.phrase
    if phrase and " ".join(confirmation.split()).lower() != phrase:
        raise PromotionRefused(
            f"{SUMMARIES[checklist.verdict]} To promote it anyway, type “{phrase}”."
        )
