"""The administrator's pages: workers, data sets, training runs, model versions, people and what
they did.
"""

from webapp.admin import audit, datasets, operations, runs, users, versions
from webapp.admin.pages import blueprint

__all__ = ["audit", "blueprint", "datasets", "operations", "runs", "users", "versions"]
