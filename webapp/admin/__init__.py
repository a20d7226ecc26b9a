"""The administrator's pages: operations, data sets, training runs, model versions, evaluations,
this site, users and the audit log.
"""

from webapp.admin import audit, datasets, evaluations, operations, runs, site, users, versions
from webapp.admin.pages import blueprint

__all__ = [
    "audit",
    "blueprint",
    "datasets",
    "evaluations",
    "operations",
    "runs",
    "site",
    "users",
    "versions",
]
