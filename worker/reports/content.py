"""The content of a report, gathered from rows and stored images before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO

from PIL import Image

from ml.verdict import State, inconclusive_band
from webapp import __version__
from webapp.display import finding_label, name_of_version
from webapp.models import Opinion, Prediction, Scan
from webapp.scans.outline_view import volume_sentence
from webapp.scans.outlines import contour
from webapp.storage import storage
from worker.retries import retry_storage
from worker.scan_files import shown_slice

HEAT_SAYS = "Heat map: what influenced the result, not where a hemorrhage is"
OUTLINE_SAYS = "Outline: where the model suspects hemorrhage"
RESEARCH = "Research use only, never a diagnosis."
LIMITS = (
    "Hemoscan is not a medical device and has not been validated for clinical use. Its models were"
    " trained on small public sets of axial slices; thin hemorrhages are missed most often, and"
    " images from other scanners or patients may be misclassified. A heat map shows what influenced"
    " the result, not where a hemorrhage is. “Not found” does not exclude a hemorrhage."
    " Whatever this report says, have the scan read by a radiologist."
)


@dataclass(frozen=True)
class OpinionText:
    """An opinion on a scan as stated in a report: `verdict` includes the slice and the types."""

    name: str
    verdict: str
    comment: str
    at: datetime

    @classmethod
    def of(cls, opinion: Opinion) -> OpinionText:
        """Return an opinion in this form."""
        where = "" if opinion.slice_number is None else f" in slice {opinion.slice_number}"
        types = f" ({', '.join(opinion.types)})" if opinion.types else ""
        return cls(
            opinion.author.username,
            f"{finding_label(opinion.finding).lower()}{where}{types}",
            opinion.comment,
            opinion.updated_at,
        )


@dataclass(frozen=True)
class Verdict:
    """The prediction for a scan.

    Attributes:
        sentence: the headline.
        probability, threshold: 0..1.
        band: the inconclusive range (low, high); None if the model states none.
    """

    state: State
    sentence: str
    probability: float
    threshold: float
    band: tuple[float, float] | None


@dataclass(frozen=True)
class Content:
    """The content of a report of a scan.

    Attributes:
        slices: a probability (0..1) for each slice, from inferior to superior.
        first_slices: the slices to look at first; counted from 0.
        types: the probability of each type of hemorrhage that the model names, highest first.
        image: the slice that represents the scan, as on its page; `index` is its index.
        overlay: its overlay, RGBA: the outline of the hemorrhage or otherwise the heat map; None if
            there is neither. `overlay_says` describes it.
        volume_ml: the outlined volume; None if it is unknown. `volume_sentence` states it as a
            sentence, or why it is unknown; it is empty if nothing is outlined.
        replaces: sentences about earlier scans of the series, of which more arrived later.
    """

    scan_id: str
    title: str
    file_type: str
    submitted_at: datetime
    finished_at: datetime
    verdict: Verdict
    slices: Sequence[float]
    first_slices: Sequence[int]
    types: Sequence[tuple[str, float]]
    architecture: str
    model: str
    model_card: str
    model_version: str
    warnings: Sequence[str]
    notes: Sequence[str]
    image: Image.Image
    index: int
    overlay: Image.Image | None
    overlay_says: str = HEAT_SAYS
    volume_ml: float | None = None
    volume_sentence: str = ""
    opinions: Sequence[OpinionText] = field(default=())
    software: str = f"Hemoscan {__version__}"
    replaces: Sequence[str] = ()

    @property
    def overlaid(self) -> Image.Image:
        """The slice with its overlay, RGB; the slice alone if there is no overlay."""
        picture = self.image.convert("RGBA")
        if self.overlay is not None:
            over = self.overlay.convert("RGBA")
            if over.size != picture.size:
                over = over.resize(picture.size, Image.Resampling.BILINEAR)
            picture = Image.alpha_composite(picture, over)
        return picture.convert("RGB")


def content_of(scan: Scan, prediction: Prediction, opinions: Sequence[Opinion] = ()) -> Content:
    """Return the content of a report of a scan with a result.

    Raises:
        StorageError: its images cannot be read.
    """
    version = prediction.model_version
    types = {name: float(type_["probability"]) for name, type_ in (prediction.types or {}).items()}
    heatmap = prediction.heatmap
    index = shown_slice(prediction.first_slices)
    overlay, says = None, HEAT_SAYS
    if scan.outline_key is not None and index in (prediction.outlined_slices or ()):
        key = scan.outline_key
        overlay, says = _opened(retry_storage(lambda: contour(key, index))), OUTLINE_SAYS
    elif heatmap is not None and heatmap.image_key:
        overlay = _picture(heatmap.image_key)
    return Content(
        scan_id=scan.id,
        title=scan.title,
        file_type=scan.kind,
        submitted_at=scan.created_at,
        finished_at=scan.finished_at or prediction.created_at,
        verdict=Verdict(
            prediction.state,
            prediction.verdict,
            prediction.probability,
            prediction.threshold,
            inconclusive_band(
                version.card, prediction.threshold, of_series=len(prediction.slices) > 1
            ),
        ),
        slices=prediction.slices,
        first_slices=prediction.first_slices or [],
        types=sorted(types.items(), key=lambda type: -type[1]),
        architecture=version.architecture,
        model=name_of_version(version),
        model_card=version.card_id,
        model_version=version.id,
        warnings=[*scan.cautions, *prediction.warnings],
        notes=[note for note in scan.notes or () if note not in scan.cautions],
        image=_picture(scan.image_key or ""),
        index=index,
        overlay=overlay,
        opinions=[OpinionText.of(each) for each in opinions],
        overlay_says=says,
        volume_ml=prediction.volume_ml,
        volume_sentence=volume_sentence(prediction),
        replaces=list(dict.fromkeys(earlier["sentence"] for earlier in scan.replaces or ())),
    )


def _picture(key: str) -> Image.Image:
    return _opened(retry_storage(lambda: storage.get(key)))


def _opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))
