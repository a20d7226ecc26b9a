"""The documents name every setting, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from webapp import config
from webapp.config import PROJECT_ROOT
from webapp.jobs import QUEUE_OF_TABLE
from webapp.logs import ids_field

DOCUMENTS = [
    PROJECT_ROOT / "README.md",
    PROJECT_ROOT / "CONTRIBUTING.md",
    PROJECT_ROOT / "CHANGELOG.md",
    PROJECT_ROOT / "bench" / "README.md",
    PROJECT_ROOT / "clients" / "python" / "README.md",
    *sorted((PROJECT_ROOT / "docs").rglob("*.md")),
]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_is_documented() -> None:
    source = (PROJECT_ROOT / "webapp" / "config.py").read_text(encoding="utf-8")
    texts = set(re.findall(r'environ\.get\("([A-Z_]+)"', source))
    named = texts | {*config.NUMBERS, *config.SWITCHES, *config.CHOICES}
    documented = set(re.findall(r"`([A-Z_]+)`", (PROJECT_ROOT / "docs/settings.md").read_text()))

    assert len(texts) > 5
    assert named <= documented


def test_every_table_of_jobs_is_named_where_operators_read_of_metrics_and_logs() -> None:
    operations = (PROJECT_ROOT / "docs/operations.md").read_text(encoding="utf-8")
    for table in QUEUE_OF_TABLE:
        assert f"`{table.__tablename__}`" in operations
        assert f"`{ids_field(table)}`" in operations


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
