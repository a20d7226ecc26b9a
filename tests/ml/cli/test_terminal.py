"""What a person at a terminal, or a log, is told of how far a command is."""

from __future__ import annotations

import io

import pytest

from ml.cli import terminal
from ml.cli.terminal import StatusLine
from ml.training.progress import Progress


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the time as `time.monotonic` does."""
        return self.now


class Terminal(io.StringIO):
    """Standard error that somebody watches."""

    def isatty(self) -> bool:
        """True, as at a terminal."""
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that status lines look at."""
    made = Clock()
    monkeypatch.setattr(terminal, "time", made)
    return made


def test_a_log_gets_a_line_every_ten_seconds_and_the_last_one(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = StatusLine("reading image")
    for done in range(5, 30):
        line.count(done, 29)
        clock.now += 1
    assert capsys.readouterr().err.splitlines() == [
        "reading image 5 of 29",
        "reading image 15 of 29, 14 s left",
        "reading image 25 of 29, 4 s left",
        "reading image 29 of 29",
    ]


def test_a_terminal_sees_one_line_that_is_written_over(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Terminal()
    monkeypatch.setattr("sys.stderr", seen)
    line = StatusLine()
    line.train(Progress("fold 1 of 2", 0.25, 300.0, {"loss": 0.51234}))
    line.train(Progress("fold 1 of 2", 0.26, 299.0, {}))
    clock.now += 1
    line.train(Progress("figures", 1.0, None, {}))
    assert seen.getvalue() == (
        "\r\033[K 25% fold 1 of 2, 5 min left  loss 0.512\r\033[K100% figures\n"
    )
