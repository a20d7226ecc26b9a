"""The administrator's pages: workers, data sets, training runs, model versions and people."""

from webapp.admin import datasets, operations, runs, users, versions
from webapp.admin.pages import blueprint

__all__ = ["blueprint", "datasets", "operations", "runs", "users", "versions"]
