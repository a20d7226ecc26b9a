"""What the API reports about any kind of job."""

from __future__ import annotations

from typing import Any

from webapp.models import Leased


def work_as_json(job: Leased) -> dict[str, Any]:
    """Return the progress of a job (`WorkSchema`)."""
    return {
        "id": job.id,
        "status": job.status,
        "progress": job.progress,
        "stage": job.stage,
        "error": job.error,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }
