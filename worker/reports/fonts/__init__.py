"""The fonts of reports, which licenses here tell the origin of: most alphabets, and emoji."""

from pathlib import Path

_FOLDER = Path(__file__).parent
REGULAR, BOLD = _FOLDER / "DejaVuSans.ttf", _FOLDER / "DejaVuSans-Bold.ttf"
EMOJI = _FOLDER / "NotoEmoji-Regular.ttf"
