"""What runs alongside the scans of a campaign: a shadow, replays and the audit log's chain, each
with an invariant that must hold whatever is killed.
"""

from __future__ import annotations

from sqlalchemy import func, select, true

from bench.chaos.stack import Stack
from webapp.audit_chain import seal, verify
from webapp.extensions import db
from webapp.models import (
    JobStatus,
    ModelVersion,
    Prediction,
    Replay,
    Shadow,
    ShadowAnswer,
    live_version,
    sample_answers,
    start_shadow,
)

REPLAYS = 50
STOPPED = "The worker stopped three times while it was"


def begin_shadow(stack: Stack) -> None:
    """Run a copy of the live version in its own shadow; both must always give the same answers."""
    with stack.app.app_context():
        live = live_version("slice")
        if live is None:
            raise RuntimeError("no version is live")
        copy = ModelVersion(
            card_id=live.card_id,
            architecture=live.architecture,
            reads=live.reads,
            storage_prefix=live.storage_prefix,
            card=live.card,
        )
        db.session.add(copy)
        db.session.flush()
        start_shadow(copy, None)
        db.session.commit()


def request_replays() -> int:
    """Request replays of some of the answers so far; return how many."""
    _, drawn = sample_answers(REPLAYS, None)
    db.session.commit()
    return drawn


def complaints() -> list[str]:
    """Return the violated invariants at the end of the campaign."""
    shadow = db.session.scalars(select(Shadow).where(Shadow.reads == "slice")).one()
    its = ShadowAnswer.shadow_id == shadow.id
    broken = []
    if shadow.ended_at is not None:
        broken.append(f"the shadow ended: {shadow.ended_because}")
    answered = count(Prediction, Prediction.model_version_id == shadow.against_id)
    rows = count(ShadowAnswer, its) + shadow.skipped
    if rows != answered:
        broken.append(
            f"{answered} scans have a live prediction, but {rows} should have a shadow prediction"
        )
    done = ShadowAnswer.status == JobStatus.DONE
    if other := count(
        ShadowAnswer, done, ShadowAnswer.probability != ShadowAnswer.live_probability
    ):
        broken.append(
            f"{other} scans got another prediction from the shadow than from the live version"
        )
    if other := count(Replay, Replay.status == JobStatus.DONE, Replay.is_same.is_(False)):
        broken.append(f"{other} predictions were not reproduced exactly")
    for table, which in ((ShadowAnswer, its), (Replay, true())):
        failed = db.session.scalars(
            select(table.error).where(table.status == JobStatus.FAILED, which)
        )
        odd = {error for error in failed if not (error or "").startswith(STOPPED)}
        if odd:
            broken.append(f"{table.__tablename__} failed: {sorted(map(str, odd))}")
    while seal():
        db.session.commit()
    chain = verify()
    if chain.problem or chain.unsealed:
        broken.append(f"the audit log: {chain.problem}, {chain.unsealed} events are not sealed")
    return broken


def count(table: type, *which: object) -> int:
    """Return how many rows there are."""
    rows = select(func.count()).select_from(table).where(*which)  # type: ignore[arg-type]
    return db.session.scalar(rows) or 0
