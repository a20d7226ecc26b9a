"""The paper's whole experiment on a data set, as a job."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.extensions import db
from webapp.models.accounts import User
from webapp.models.learning import Dataset
from webapp.models.leased import Leased


class PaperExperiment(Leased, db.Model):
    """Every architecture of the paper on a data set, plain and restructured, honest and leaked
    (`ml.paper`). It is deleted with the data set.

    Attributes:
        architectures: the requested ones, from `ml.catalogue.OF_THE_PAPER`.
        initial_weights, seed: as in a training run.
        eta_s: estimated seconds until the end.
        cells, cells_done: the number of combinations, and how many of them are finished; None until
            a worker has counted them.
        results: of the finished cells, `ml.paper.cells.PaperResults` as JSON; they are kept when
            the experiment is canceled, and not computed again when it is resumed.
    """

    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"))
    launched_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    architectures: Mapped[list[str]] = mapped_column(JSON)
    initial_weights: Mapped[str] = mapped_column(String(200), default="random")
    seed: Mapped[int] = mapped_column(default=0)
    eta_s: Mapped[float | None]
    cells: Mapped[int | None]
    cells_done: Mapped[int] = mapped_column(default=0)
    results: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    dataset: Mapped[Dataset] = relationship()
    launched_by: Mapped[User | None] = relationship()

    __table_args__ = (Index(None, "status", "queued_at"), Index(None, "dataset_id"))

    @property
    def checkpoint_key(self) -> str:
        """The storage key of the checkpoint of the current cell."""
        return f"papers/{self.id}.zip"
