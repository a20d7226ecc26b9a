"""The state of a verdict, as the pages, the API and the command line report it.

`ml.inference.predictor` compares a probability with the inconclusive band of the model's card;
`ml.evaluation.calibration` fits that band.

Standard library only, because the web application imports this module.
"""

from __future__ import annotations

from typing import Literal

State = Literal["suspected", "inconclusive", "not found"]
STATES: tuple[State, ...] = ("suspected", "inconclusive", "not found")


def state_of(*, positive: bool, uncertain: bool) -> State:
    """Return the state of a verdict: inconclusive inside the inconclusive band, where neither a
    positive nor a negative verdict keeps its promised predictive value.
    """
    if uncertain:
        return "inconclusive"
    return "suspected" if positive else "not found"
