"""The registry of model versions: which exist, which are and were live, and their promotion."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPMethod
from typing import Any

from flask import Response, g
from sqlalchemy import func, select
from sqlalchemy.orm import aliased, contains_eager, defer, joinedload
from werkzeug.exceptions import Conflict, NotFound, UnprocessableEntity

from webapp.admin.comparisons import both_at
from webapp.admin.operating_points import (
    Described,
    chosen_for,
    described,
    offered_for,
    requested_point,
)
from webapp.admin.promotion_checks import SUMMARIES, Decision, checklist_of, mark_of_live
from webapp.admin.promotion_effects import effect_of, promotion_with_version
from webapp.admin.promotions import begin_finding_out
from webapp.admin.version_figures import requested_threshold
from webapp.admin.versions import KINDS, make_live, stored_mistake
from webapp.api.access import blueprint, operation, row_of
from webapp.api.lab_schemas import (
    ChangedResultsPageSchema,
    ChecklistSchema,
    EarlierQuerySchema,
    EffectSchema,
    PromoteSchema,
    PromotionSchema,
    PromotionsPageSchema,
    RegistryPageSchema,
    ThresholdQuerySchema,
    ThresholdSchema,
    TimelineQuerySchema,
    VersionSchema,
)
from webapp.api.lists import PageQuerySchema, listed, page_of, part_of
from webapp.api.pictures import BINARY
from webapp.api.schemas import LiveModelsQuerySchema, LiveModelsSchema
from webapp.api.shadows import ShadowSummarySchema, shadow_as_json
from webapp.display import name_of_version
from webapp.extensions import db, utc_now
from webapp.models import (
    OWN_THRESHOLDS,
    ModelVersion,
    OperatingPoint,
    Promotion,
    PromotionRefused,
    Scan,
    Scope,
    Shadow,
    ShadowRefused,
    earlier_promotions,
    live_version,
    promotion_after,
    promotion_at,
)
from webapp.review.sharing import visible_to

GET, POST = HTTPMethod.GET, HTTPMethod.POST


@operation(GET, "/models/live", "live_models", Scope.READ, 422)
@blueprint.arguments(LiveModelsQuerySchema, location="query")
@blueprint.response(200, LiveModelsSchema)
def live_models(query: dict[str, Any]) -> dict[str, Any]:
    """Return the model versions that were live at a time, for single slices and for series.

    While a kind of input had no live version, the version for the other kind analyzed it, if there
    was one.
    """
    at = query["at"] or utc_now()
    return {"at": at, "slice": live_model("slice", at), "series": live_model("series", at)}


def live_model(reads: str, at: datetime) -> dict[str, Any] | None:
    """Return what was live for `reads` at a time; None if nothing was."""
    promotion = promotion_at(reads, at)
    if promotion is None:
        return None
    after = promotion_after(promotion)
    version = promotion.version
    return {
        "id": version.id,
        "card_id": version.card_id,
        "architecture": version.architecture,
        "operating_point": promotion.point or "as trained",
        "slice_threshold": promotion.slice_threshold,
        "scan_threshold": promotion.scan_threshold,
        "since": promotion.at,
        "until": after.at if after else None,
    }


@operation(GET, "/models", "list_models", Scope.ADMIN, 422)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, RegistryPageSchema)
def list_models(query: Mapping[str, Any]) -> dict[str, Any]:
    """List all model versions, newest first."""
    rows = page_of(
        select(ModelVersion, ModelVersion.card["metrics"]).options(defer(ModelVersion.card)),
        (ModelVersion.created_at.desc(), ModelVersion.id),
        query,
    )
    return listed([version_as_json(row[0], row[1]) for row in rows])


@operation(GET, "/models/<version_id>", "read_model", Scope.ADMIN, 404)
@blueprint.response(200, VersionSchema)
def read_model(version_id: str) -> dict[str, Any]:
    """Get a model version with its card and its worst mistakes."""
    version = row_of(ModelVersion, version_id)
    return {
        **version_as_json(version, version.card.get("metrics")),
        "operating_point": point_as_json(chosen_for(version)),
        "card": version.card,
        "mistakes": version.mistakes,
    }


@operation(
    GET,
    "/models/<version_id>/mistakes/<int:index>.png",
    "read_version_mistake",
    Scope.ADMIN,
    404,
)
@blueprint.response(200, BINARY, content_type="image/png")
def read_version_mistake(version_id: str, index: int) -> Response:
    """Download the image of one of a version's worst out-of-fold mistakes."""
    return stored_mistake(row_of(ModelVersion, version_id), index)


@operation(
    GET,
    "/models/<version_id>/mistakes/<int:index>/heatmap.png",
    "read_version_mistake_heatmap",
    Scope.ADMIN,
    404,
)
@blueprint.response(200, BINARY, content_type="image/png")
def read_version_mistake_heatmap(version_id: str, index: int) -> Response:
    """Download the heat map of a mistake, with the outline if the version draws one, as an overlay
    for its image.
    """
    return stored_mistake(row_of(ModelVersion, version_id), index, "-heat")


@operation(GET, "/models/<version_id>/checklist", "read_checklist", Scope.ADMIN, 404)
@blueprint.response(200, ChecklistSchema)
def read_checklist(version_id: str) -> dict[str, Any]:
    """Get what is needed to promote a version: the live version, the checklist against it, the
    operating points to choose from, and the confirmation phrase, if one is required.
    """
    version = row_of(ModelVersion, version_id)
    live = live_version(version.reads)
    is_live = live is not None and live.id == version.id
    checklist = None if is_live else checklist_of(version)
    return {
        "is_live": is_live,
        "live_id": live and live.id,
        "seen": mark_of_live(version.reads),
        "verdict": checklist and checklist.verdict,
        "summary": SUMMARIES[checklist.verdict] if checklist else None,
        "confirmation": checklist and checklist.phrase,
        "checks": checklist.checks if checklist else [],
        "compared": checklist.compared if checklist else [],
        "operating_points": [point_as_json(point) for point in offered_for(version)],
    }


@operation(POST, "/models/<version_id>/promote", "promote_model", Scope.ADMIN, 404)
@blueprint.arguments(PromoteSchema, location="json")
@blueprint.response(200, PromotionSchema)
def promote_model(body: Mapping[str, Any], version_id: str) -> dict[str, Any]:
    """Make a version live, or change the operating point of the live one.

    A predict worker has to load it first, so this may take 20 seconds. Read the checklist first: a
    version that is worse, or not comparable, needs its confirmation phrase.
    """
    return promoted(row_of(ModelVersion, version_id), body)


@operation(POST, "/models/<version_id>/roll-back", "roll_back", Scope.ADMIN, 404)
@blueprint.arguments(PromoteSchema, location="json")
@blueprint.response(200, PromotionSchema)
def roll_back(body: Mapping[str, Any], version_id: str) -> dict[str, Any]:
    """Make a version live again that was live before, under the same rules as a promotion."""
    version = row_of(ModelVersion, version_id)
    live = live_version(version.reads)
    earlier = {promotion.version_id for promotion in earlier_promotions(live)} if live else set()
    if version.id not in earlier:
        raise Conflict("Only a version that was live before can be rolled back to.")
    return promoted(version, body)


def promoted(version: ModelVersion, body: Mapping[str, Any]) -> dict[str, Any]:
    """Promote a version as requested (`PromoteSchema`); return the promotion.

    Raises:
        Conflict: it may not be promoted.
        UnprocessableEntity: it has no such operating point.
    """
    try:
        point = chosen_point(version, body)
    except ValueError as err:
        raise UnprocessableEntity(f"operating_point: {err}") from err
    try:
        decision = Decision(
            g.token_owner_id,
            body["reason"],
            point,
            seen=body["seen"],
            confirmation=body["confirmation"],
        )
        promotion = make_live(version, decision)
    except PromotionRefused as err:
        raise Conflict(str(err)) from err
    return promotion_as_json(promotion, None)


def chosen_point(version: ModelVersion, body: Mapping[str, Any]) -> OperatingPoint | None:
    """Return the requested operating point; None for the current one.

    Raises:
        ValueError: the version has no such point, or thresholds may not be given with it.
    """
    thresholds = body["slice_threshold"], body["scan_threshold"]
    if body["operating_point"] != OWN_THRESHOLDS and thresholds != (None, None):
        raise ValueError(f"Thresholds go with “{OWN_THRESHOLDS}” only.")
    if body["operating_point"] is None:
        return None
    texts = ["" if threshold is None else repr(threshold) for threshold in thresholds]
    return requested_point(version, body["operating_point"], texts[0], texts[1])


@operation(GET, "/models/<version_id>/threshold", "read_threshold", Scope.ADMIN, 404, 422)
@blueprint.arguments(ThresholdQuerySchema, location="query")
@blueprint.response(200, ThresholdSchema)
def read_threshold(query: Mapping[str, Any], version_id: str) -> dict[str, Any]:
    """Get the meaning and performance of a threshold, at a prevalence; by patient, also the
    performance of the version and of the live one on the same patients.
    """
    version = row_of(ModelVersion, version_id)
    at, level = query["at"], query["level"]
    of_patients = level == "patient"
    thresholds = (None, at) if of_patients else (at, None)
    point = described(version.card, OperatingPoint(OWN_THRESHOLDS, *thresholds))
    texts = {"level": level, "at": repr(at), "prevalence": repr(query["prevalence"])}
    return {
        "threshold": at,
        "level": level,
        "prevalence": query["prevalence"],
        "meaning": point.by_scan if of_patients else point.by_slice,
        "figures": requested_threshold(version, texts),
        "both": both_at(checklist_of(version).compared, at) if of_patients else [],
    }


@operation(GET, "/promotions", "list_promotions", Scope.ADMIN, 422)
@blueprint.arguments(TimelineQuerySchema, location="query")
@blueprint.response(200, PromotionsPageSchema)
def list_promotions(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the promotions, newest first: the timeline; with `at`, those in force at that time."""
    following = aliased(Promotion)
    until = (
        select(following.at)
        .where(following.reads == Promotion.reads, following.id > Promotion.id)
        .order_by(following.id)
        .limit(1)
        .scalar_subquery()
    )
    rows = (
        select(Promotion, until)
        .join(Promotion.version)
        .options(
            contains_eager(Promotion.version).defer(ModelVersion.card), joinedload(Promotion.by)
        )
    )
    if query["reads"]:
        rows = rows.where(Promotion.reads == query["reads"])
    if query["at"]:
        promotions = [promotion_at(reads, query["at"]) for reads in KINDS]
        rows = rows.where(Promotion.id.in_([each.id for each in promotions if each]))
    page = page_of(rows, (Promotion.id.desc(),), query)
    return listed([promotion_as_json(row[0], row[1]) for row in page])


@operation(GET, "/promotions/earlier", "list_earlier", Scope.ADMIN, 422)
@blueprint.arguments(EarlierQuerySchema, location="query")
@blueprint.response(200, PromotionsPageSchema)
def list_earlier(query: Mapping[str, Any]) -> dict[str, Any]:
    """List the possible rollbacks: the last promotion of each version that was live before."""
    live = live_version(query["reads"])
    earlier = part_of(earlier_promotions(live) if live else [], lambda each: str(each.id), query)
    ends = {each.id: promotion_after(each) for each in earlier}
    return listed([promotion_as_json(each, end_of(ends[each.id])) for each in earlier])


@operation(GET, "/promotions/<int:promotion_id>", "read_promotion", Scope.ADMIN, 404)
@blueprint.response(200, EffectSchema)
def read_promotion(promotion_id: int) -> dict[str, Any]:
    """Get a promotion with its effect: how many results would have been different without it."""
    effect = effect_of(promotion_of(promotion_id))
    return {
        **promotion_as_json(effect.promotion, effect.until),
        "before": effect.before and promotion_as_json(effect.before, effect.promotion.at),
        "is_point_only": effect.is_point_only,
        "scans": len(effect.results),
        "is_cut": effect.is_cut,
        "known": len(effect.beside),
        "missing": effect.missing,
        "changed": len(effect.changed),
        "suspected_with_only": effect.suspected_with_only,
        "suspected_without_only": effect.suspected_without_only,
        "shadow_id": effect.running and effect.running.id,
        "compared": effect.compared,
    }


@operation(
    GET,
    "/promotions/<int:promotion_id>/changed",
    "list_changed_results",
    Scope.ADMIN,
    404,
    422,
)
@blueprint.arguments(PageQuerySchema, location="query")
@blueprint.response(200, ChangedResultsPageSchema)
def list_changed_results(query: Mapping[str, Any], promotion_id: int) -> dict[str, Any]:
    """List the results that would have been different without a promotion, where that is known."""
    changed = effect_of(promotion_of(promotion_id)).changed
    shown = part_of(changed, lambda pair: pair.result.scan_id, query)
    ids = [pair.result.scan_id for pair in shown]
    visible = select(Scan.id).where(Scan.id.in_(ids), visible_to(g.token_owner_id))
    seen = set(db.session.scalars(visible))
    return listed(
        [
            {
                "scan_id": pair.result.scan_id if pair.result.scan_id in seen else None,
                "state": pair.result.state,
                "probability": pair.result.probability,
                "without_state": pair.state,
                "without_probability": pair.probability,
                "answered_at": pair.result.at,
            }
            for pair in shown
        ]
    )


@operation(POST, "/promotions/<int:promotion_id>/find-out", "find_out_promotion", Scope.ADMIN, 404)
@blueprint.response(202, ShadowSummarySchema)
def find_out_promotion(promotion_id: int) -> dict[str, Any]:
    """Have the previous version analyze, at the lowest priority, the scans from the period of a
    promotion that it has not analyzed; this runs as a shadow, which `stop_shadow` ends.
    """
    try:
        shadow, _ = begin_finding_out(promotion_of(promotion_id), g.token_owner_id)
    except ShadowRefused as err:
        raise Conflict(str(err)) from err
    return shadow_as_json(row_of(Shadow, shadow.id))


def promotion_of(promotion_id: int) -> Promotion:
    """Return a promotion.

    Raises:
        NotFound: there is none.
    """
    promotion = promotion_with_version(promotion_id)
    if promotion is None:
        raise NotFound("Promotion not found.")
    return promotion


def end_of(following: Promotion | None) -> datetime | None:
    """Return when the promotion before this one ended."""
    return following.at if following else None


def version_as_json(version: ModelVersion, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a version in the form of `RegisteredSchema`."""
    live = live_id(version.reads)
    return {
        "id": version.id,
        "name": name_of_version(version),
        "card_id": version.card_id,
        "architecture": version.architecture,
        "number": version.number,
        "reads": version.reads,
        "run_id": version.run_id,
        "created_at": version.created_at,
        "is_live": live == version.id,
        "blocked_because": version.blocked_because,
        "metrics": metrics or {},
    }


def live_id(reads: str) -> str | None:
    """Return the id of the live version for `reads`; looked up once for each request."""
    if "live_ids" not in g:
        newest = select(func.max(Promotion.id)).group_by(Promotion.reads)
        rows = select(Promotion.reads, Promotion.version_id).where(Promotion.id.in_(newest))
        g.live_ids = {row.reads: row.version_id for row in db.session.execute(rows)}
    version_id: str | None = g.live_ids.get(reads)
    return version_id


def point_as_json(point: Described) -> dict[str, Any]:
    """Return an operating point in the form of `OperatingPointSchema`."""
    return {
        "name": point.name,
        "scan_threshold": point.scan_threshold,
        "slice_threshold": point.slice_threshold,
        "by_scan": point.by_scan,
        "by_slice": point.by_slice,
    }


def promotion_as_json(promotion: Promotion, until: datetime | None) -> dict[str, Any]:
    """Return a promotion in the form of `PromotionSchema`."""
    return {
        "id": promotion.id,
        "version_id": promotion.version_id,
        "name": name_of_version(promotion.version),
        "reads": promotion.reads,
        "at": promotion.at,
        "until": until,
        "by": promotion.by and promotion.by.username,
        "reason": promotion.reason,
        "operating_point": str(promotion.operating_point),
        "evidence": promotion.evidence,
    }
