"""Points in the code of the workers at which a process is killed: just before it commits what it
has computed and stored, or while it handles a file (`bench.chaos.inside.sitecustomize`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.chaos.stack import Stack
from webapp.models import Leased, new_id


@dataclass(frozen=True)
class KillPoint:
    """A point that is set; `kills` says how many processes it has killed."""

    file: Path

    @property
    def kills(self) -> int:
        """How many processes it has killed so far."""
        return len(list((self.file.parent / "kills").glob(f"{self.file.name}.*")))


@contextmanager
def kill_point(stack: Stack, point: str, *, always: bool = False) -> Iterator[KillPoint]:
    """Kill the next process of a worker that reaches a point, or each one until the context ends.

    Args:
        point: a regular expression of `commit STATEMENT PARAMETERS`, `open PATH` or `os.remove
            PATH`.
    """
    name = f"{'always' if always else 'once'}-{new_id()}"
    file, written = stack.points / name, stack.points / "kills" / name
    written.write_text(point, encoding="utf-8")
    written.rename(file)  # So that no process reads half of it.
    try:
        yield KillPoint(file)
    finally:
        file.unlink(missing_ok=True)


def end_of(table: type[Leased]) -> str:
    """Return the point between the end of a job, whose files are stored, and its commit."""
    name = table.__table__.name  # type: ignore[attr-defined]
    return rf"commit UPDATE {name} SET .*'done'"
