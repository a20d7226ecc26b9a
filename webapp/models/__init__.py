"""The rows, by topic."""

from webapp.models.accounts import ApiToken, LoginSession, PasswordReset, Role, User, active_admins
from webapp.models.learning import (
    Dataset,
    ModelVersion,
    Promotion,
    PromotionRefused,
    TrainingRun,
    answering_versions,
    live_version,
    promote,
    version_before,
)
from webapp.models.leased import Attempt, JobStatus, Leased, cancel, new_id, queue_again
from webapp.models.operations import Act, AuditEvent, Worker
from webapp.models.scans import (
    IN_ITS_TURN,
    ORIGINAL_REMOVED,
    Heatmap,
    Order,
    Prediction,
    Scan,
    force,
    result_of,
    retry,
    urgent_room,
)
from webapp.models.second_factors import RecoveryCode, SecondFactor

__all__ = [
    "IN_ITS_TURN",
    "ORIGINAL_REMOVED",
    "Act",
    "ApiToken",
    "Attempt",
    "AuditEvent",
    "Dataset",
    "Heatmap",
    "JobStatus",
    "Leased",
    "LoginSession",
    "ModelVersion",
    "Order",
    "PasswordReset",
    "Prediction",
    "Promotion",
    "PromotionRefused",
    "RecoveryCode",
    "Role",
    "Scan",
    "SecondFactor",
    "TrainingRun",
    "User",
    "Worker",
    "active_admins",
    "answering_versions",
    "cancel",
    "force",
    "live_version",
    "new_id",
    "promote",
    "queue_again",
    "result_of",
    "retry",
    "urgent_room",
    "version_before",
]
