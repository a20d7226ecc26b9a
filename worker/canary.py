"""The canary: a version must reproduce its recorded score for a phantom before it goes live, and
before a worker analyzes scans with it.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import select, update

from ml.errors import ArtifactError
from ml.inference.predictor import Predictor
from ml.scans.phantoms import phantom
from ml.scans.slices import Series, Slice
from webapp.extensions import db
from webapp.models import ModelVersion
from worker.retries import in_transaction

SEED, SIZE_PX = 4711, 256
SLICES = {"slice": 1, "series": 3}
MOST_APART = 1e-3
"""Probabilities of one model on two processors differ by less than a hundredth of this."""


@cache
def phantom_series(reads: str) -> Series:
    """Return the canary's phantom for what a model reads, "slice" or "series", in HU."""
    return Series(
        tuple(
            Slice(phantom(SEED + n, hemorrhage=n == 0, size=SIZE_PX).astype("float32"), "hu")
            for n in range(SLICES[reads])
        )
    )


def answer_of(predictor: Predictor) -> float:
    """Return the probability that a model gives the phantom.

    Raises:
        ArtifactError: it returns none.
    """
    try:
        return predictor.predict(phantom_series(predictor.card.reads)).probability
    except ArtifactError:
        raise
    except Exception as err:
        raise ArtifactError(
            f"The model could not score the test phantom ({type(err).__name__})."
        ) from err


def require_same_answer(version: ModelVersion, predictor: Predictor) -> None:
    """Have a loaded model score the phantom, and compare; for a version without a recorded score,
    such as a starter, the score is recorded.

    Raises:
        ArtifactError: the score differs from the recorded one.
    """
    answer = answer_of(predictor)
    recorded = in_transaction(
        lambda: db.session.scalar(select(ModelVersion.canary).where(ModelVersion.id == version.id))
    )
    if recorded is None:
        in_transaction(
            lambda: db.session.execute(
                update(ModelVersion)
                .where(ModelVersion.id == version.id, ModelVersion.canary.is_(None))
                .values(canary=answer),
                execution_options={"synchronize_session": False},
            )
        )
    elif abs(answer - recorded) > MOST_APART:
        raise ArtifactError(
            f"The model's probability for the test phantom is {answer:.4f}; it was {recorded:.4f}"
            " when the model was created."
        )
