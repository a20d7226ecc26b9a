"""The floors of `ml` and `webapp`: a package imports only what lies below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from webapp.config import PROJECT_ROOT

FLOORS = (
    {"errors", "confinement", "runs"},
    {
        "checkpoints",
        "catalogue",
        "expected_time",
        "first_voxel",
        "image_types",
        "named_points",
        "same_scan",
        "verdict",
        "zip_end",
        "figures",
        "typed_json",
    },
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
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OF_THE_WEB = (
    {"models"},
    {"accounts", "intake", "review"},
    {"learning"},
    {"admin", "api", "dicomweb", "scans"},
)
"""The packages of `webapp`; those of the last floor answer requests, and may import each other."""


def rooms_entered(path: Path) -> set[str]:
    """Return the packages and modules right below `ml` that the file imports from."""
    entered: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            entered |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ml":
            entered |= {f"ml.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            entered.add(node.module)
    return {name.split(".")[1] for name in entered if name.startswith("ml.")}


def modules() -> list[Path]:
    """Return all modules of `ml`."""
    return sorted((PROJECT_ROOT / "ml").rglob("*.py"))


def room_of(path: Path) -> str:
    """Return the package or module right below `ml` that holds the file."""
    return path.relative_to(PROJECT_ROOT / "ml").parts[0].removesuffix(".py")


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in modules()} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    for path in modules():
        if room_of(path) == room:
            others = rooms_entered(path) - {room}
            assert {other for other in others if FLOOR[other] >= FLOOR[room]} == set(), path


def packages_entered(path: Path) -> set[str]:
    """Return the packages of `webapp` that the file imports from."""
    entered: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            entered |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    packages = set().union(*OF_THE_WEB)
    return {name.split(".")[1] for name in entered if name.startswith("webapp.")} & packages


def test_every_package_of_the_web_application_has_a_floor() -> None:
    found = {path.parent.name for path in (PROJECT_ROOT / "webapp").glob("*/__init__.py")}
    assert found == set().union(*OF_THE_WEB)


@pytest.mark.parametrize("floor", range(len(OF_THE_WEB) - 1))
def test_a_package_of_the_web_application_imports_only_what_lies_below_it(floor: int) -> None:
    above = set().union(*OF_THE_WEB[floor:])
    for package in OF_THE_WEB[floor]:
        for path in (PROJECT_ROOT / "webapp" / package).rglob("*.py"):
            assert packages_entered(path) & above <= {package}, path
