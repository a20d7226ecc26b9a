"""The fonts of reports, for most alphabets and emoji; the license files here state their origin."""

from pathlib import Path

_FOLDER = Path(__file__).parent
REGULAR, BOLD = _FOLDER / "DejaVuSans.ttf", _FOLDER / "DejaVuSans-Bold.ttf"
EMOJI = _FOLDER / "NotoEmoji-Regular.ttf"
