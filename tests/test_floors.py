"""The floors of `ml` and `webapp`: a package imports only what lies below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from webapp.config import PROJECT_ROOT

FLOORS = (
    {"errors", "confinement", "expected_fits"},
    {
        "checkpoints",
        "catalogue",
        "expected_time",
        "named_points",
        "verdict",
        "figures",
        "typed_json",
    },
    {"files"},
    {"scans"},
    {"preprocessing"},
    {"artifacts"},
    {"inference", "evaluation", "datasets"},
    {"exploration"},
    {"networks"},
    {"models", "validation"},
    {"gate_training", "training"},
    {"paper"},
    {"cli", "decode"},
    {"__main__"},
)
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
OF_THE_WEB = (
    {"charts", "embedded", "models"},
    {"accounts", "intake", "review"},
    {"learning"},
    {"admin", "api", "dicomweb", "scans"},
)
"""The packages of `webapp`; those of the last floor answer requests, and may import each other."""


def parts_imported(path: Path) -> set[str]:
    """Return the packages and modules right below `ml` that the file imports from."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ml":
            imported |= {f"ml.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
    return {name.split(".")[1] for name in imported if name.startswith("ml.")}


def modules() -> list[Path]:
    """Return all modules of `ml`."""
    return sorted((PROJECT_ROOT / "ml").rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the package or module right below `ml` that holds the file."""
    return path.relative_to(PROJECT_ROOT / "ml").parts[0].removesuffix(".py")


def test_every_part_has_a_floor() -> None:
    assert {part_of(path) for path in modules()} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("part", sorted(FLOOR))
def test_a_part_imports_only_what_lies_below_it(part: str) -> None:
    for path in modules():
        if part_of(path) == part:
            others = parts_imported(path) - {part}
            assert {other for other in others if FLOOR[other] >= FLOOR[part]} == set(), path


def packages_imported(path: Path) -> set[str]:
    """Return the packages of `webapp` that the file imports from."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    packages = set().union(*OF_THE_WEB)
    return {name.split(".")[1] for name in imported if name.startswith("webapp.")} & packages


def test_every_package_of_the_web_application_has_a_floor() -> None:
    found = {path.parent.name for path in (PROJECT_ROOT / "webapp").glob("*/__init__.py")}
    assert found == set().union(*OF_THE_WEB)


@pytest.mark.parametrize("floor", range(len(OF_THE_WEB) - 1))
def test_a_package_of_the_web_application_imports_only_what_lies_below_it(floor: int) -> None:
    above = set().union(*OF_THE_WEB[floor:])
    for package in OF_THE_WEB[floor]:
        for path in (PROJECT_ROOT / "webapp" / package).rglob("*.py"):
            assert packages_imported(path) & above <= {package}, path
