"""The administrator's pages: operations, data sets, training runs, model versions, this site,
users and the audit log.
"""

from webapp.admin import audit, datasets, operations, runs, site, users, versions
from webapp.admin.pages import blueprint

__all__ = ["audit", "blueprint", "datasets", "operations", "runs", "site", "users", "versions"]
