"""The administrator's pages: operations, data sets and their images, processing, training runs,
model versions, promotions, evaluations, replays, shadows, this site, users and the audit log.
"""

from webapp.admin import (
    accuracy,
    audit,
    dataset_questions,
    datasets,
    evaluations,
    images,
    launching,
    operations,
    papers,
    processing,
    promotions,
    replays,
    runs,
    shadows,
    site,
    users,
    versions,
)
from webapp.admin.pages import blueprint

__all__ = [
    "accuracy",
    "audit",
    "blueprint",
    "dataset_questions",
    "datasets",
    "evaluations",
    "images",
    "launching",
    "operations",
    "papers",
    "processing",
    "promotions",
    "replays",
    "runs",
    "shadows",
    "site",
    "users",
    "versions",
]
