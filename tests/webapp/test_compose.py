"""The compose file and the Dockerfile against their published rules; no container runs here.

The compose file is checked by the compose specification's own JSON schema, which `check-jsonschema`
ships; the Dockerfile by hadolint, which parses it and holds it to Docker's best practices.
"""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from honcho.environ import parse_procfile

from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from webapp.config import PROJECT_ROOT, settings
from webapp.embedded import processes
from webapp.embedded.processes import commands

DOCKERFILE = (PROJECT_ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name in SERVICES if name not in ("db", "redis", "proxy")]
REQUIREMENTS = ["webapp", "worker", "ml", "tests"]


def stages() -> dict[str, str]:
    """Return the Dockerfile's stages by name."""
    parts = re.split(r"^FROM (?:\S+) AS (\S+)\n", DOCKERFILE, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def locked(package: str) -> dict[str, set[str]]:
    """Return the versions (more than one where they differ by Python) that a requirements file
    locks, by library.
    """
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([a-z0-9._-]+)==(\S+)", (PROJECT_ROOT / package / "requirements.txt").read_text(), re.M
    ):
        versions.setdefault(name, set()).add(version)
    return versions


def test_the_compose_file_obeys_the_compose_specification() -> None:
    schema = json.loads(
        (files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text()
    )

    jsonschema.validate(COMPOSE, schema)


def test_every_part_of_the_service_is_there() -> None:
    assert set(SERVICES) == {
        "db",
        "redis",
        "migrate",
        "proxy",
        "web",
        "worker-predict",
        "worker-train",
        "beat",
        "dicom-listen",
    }


def test_only_the_proxy_faces_the_network_unless_an_operator_opens_more() -> None:
    published = {name: SERVICES[name].get("ports", []) for name in SERVICES}

    assert published.pop("proxy") == ["${HTTPS_PORT:-443}:8443", "${HTTP_PORT:-80}:8080"]
    assert published.pop("web") == ["${LISTEN:-127.0.0.1}:${PORT:-8000}:8000"]
    dicom = ["${DICOM_LISTEN:-127.0.0.1}:${DICOM_PORT:-11112}:11112"]
    assert published.pop("dicom-listen") == dicom
    assert not any(published.values())


def test_a_broker_keeps_nothing_on_the_disk() -> None:
    assert SERVICES["redis"]["command"] == 'valkey-server --appendonly no --save ""'
    assert "volumes" not in SERVICES["redis"]


def test_compose_and_the_procfile_start_the_same_commands() -> None:
    commands = parse_procfile((PROJECT_ROOT / "Procfile").read_text()).processes

    assert {name: SERVICES[name]["command"] for name in commands} == dict(commands)


def test_make_run_starts_the_listener_where_somebody_may_send(tmp_path: Path) -> None:
    home = {"HEMOSCAN_HOME": str(tmp_path)}
    alone = commands(settings(home))
    connected = commands(settings({**home, "DICOM_PEERS": "CT1@10.1.2.3 account=ann"}))

    of_procfile = parse_procfile((PROJECT_ROOT / "Procfile").read_text()).processes
    assert connected == {name: f"exec {command}" for name, command in of_procfile.items()}
    assert set(connected) - set(alone) == {"dicom-listen"}


def test_the_train_worker_of_make_run_starts_once_what_it_needs_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "INSTALL_AGAIN_S", 0)
    installed, log = tmp_path / "installed", tmp_path / "log"
    # Fails at first, as without a network.
    install = f"echo try >> {log}; [ -e {installed} ] || {{ touch {installed}; false; }}"
    lines = commands(settings({"HEMOSCAN_HOME": str(tmp_path)}), install)
    assert [name for name in lines if install in lines[name]] == ["worker-train"]

    first, then = lines["worker-train"].rsplit("; exec python -m celery ", 1)
    assert then.startswith("-A worker.app ")
    subprocess.run(["sh", "-c", f"umask 077; {first}; umask >> {log}"], check=True, timeout=10)
    assert log.read_text().split() == ["try", "try", "0077"]


def test_whatever_a_service_depends_on_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, f"{name} depends on {needed}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for the health of {needed}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert name in OURS or service["user"] not in ("root", "0")  # Ours say so in the Dockerfile.
    assert "privileged" not in service and "cap_add" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_can_starve_the_others(name: str) -> None:
    service = SERVICES[name]
    memory, cpus = (
        re.sub(r"^\$\{[A-Z_]+:-(.+)\}$", r"\1", str(service[limit]))
        for limit in ("mem_limit", "cpus")
    )
    assert re.fullmatch("[0-9]+[mg]", memory)
    # Docker refuses more than the machine has.
    assert float(cpus) == 1
    assert 0 < service["pids_limit"] <= 500


def test_every_third_party_image_is_pinned_by_version_and_digest_the_same_everywhere() -> None:
    images = [SERVICES[name]["image"] for name in ("db", "redis", "proxy")]
    (python,) = {SERVICES[name]["build"]["args"]["PYTHON_IMAGE"] for name in OURS}

    for image in (*images, python):
        assert re.fullmatch(
            r"\$\{[A-Z]+_IMAGE:-[a-z/-]+:[0-9][a-z0-9.-]+@sha256:[0-9a-f]{64}\}", image
        )
    assert (
        f"\nARG PYTHON_IMAGE={python.removeprefix('${PYTHON_IMAGE:-').rstrip('}')}\n" in DOCKERFILE
    )
    broker = SERVICES["redis"]["image"].removeprefix("${BROKER_IMAGE:-").rstrip("}")
    assert f"image: {broker}\n" in (PROJECT_ROOT / "deploy/kubernetes/broker.yaml").read_text()
    assert DOCKERFILE.count("FROM ${PYTHON_IMAGE} AS ") == 1
    assert not re.search(r"^FROM (?!\$\{PYTHON_IMAGE\}|base )", DOCKERFILE, re.M)


@pytest.mark.parametrize("name", SERVICES)
def test_no_command_line_holds_a_secret_where_everybody_on_the_machine_could_read_it(
    name: str,
) -> None:
    commands = [
        SERVICES[name].get("command", ""),
        SERVICES[name].get("healthcheck", {}).get("test", ""),
    ]

    assert not re.search(r"\$|://[^/ ]*@|(?i:password|secret|token)", str(commands))


@pytest.mark.parametrize("name", OURS)
def test_our_containers_write_to_their_volumes_and_nowhere_else(name: str) -> None:
    service = SERVICES[name]

    assert service["tmpfs"] == ["/tmp"]
    assert service["restart"] in ("unless-stopped", "on-failure")
    assert {volume.partition(":")[0] for volume in service["volumes"]} - {"/var/hemoscan"} <= set(
        COMPOSE["volumes"]
    )


def test_our_containers_share_database_broker_storage_and_key() -> None:
    shared = [
        {
            name: SERVICES[ours]["environment"][name]
            for name in ("DATABASE_URL", "BROKER_URL", "STORAGE_URL", "SECRET_KEY")
        }
        for ours in OURS
    ]

    assert all(each == shared[0] for each in shared)


@pytest.mark.parametrize("name", OURS)
def test_every_image_is_a_stage_that_drops_its_privileges(name: str) -> None:
    build = SERVICES[name]["build"]

    assert SERVICES[name]["image"] == f"hemoscan-{build['target']}"
    assert re.search(r"^USER 10001$", stages()[build["target"]], re.M)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"

    completed = subprocess.run(
        [hadolint, PROJECT_ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert (completed.returncode, completed.stdout) == (0, "")


def test_everything_that_the_dockerfile_copies_exists_and_is_not_ignored() -> None:
    allowed = {
        line[1:]
        for line in (PROJECT_ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = [
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    ]

    assert sources
    for source in sources:
        assert (PROJECT_ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, source


def test_the_images_have_the_model_folders_that_they_need() -> None:
    shipped = [folder for folder in (STARTER_DIR, STARTER_SERIES_DIR) if folder.is_dir()]

    for folder in shipped:  # setup puts them into storage
        name = folder.relative_to(PROJECT_ROOT).as_posix()
        assert re.search(rf"^COPY {name} {name}$", stages()["web"], re.M), name
    for stage in ("predict", "train"):  # these need ml/not_head_ct too
        assert re.search(r"^COPY ml ml$", stages()[stage], re.M), stage


def test_web_and_predict_have_no_tensorflow() -> None:
    heavy = {"tensorflow", "keras", "scikit-learn", "scipy", "scikit-image", "matplotlib"}

    assert not heavy & (set(locked("webapp")) | set(locked("worker")))
    assert not {"onnxruntime", "numpy", "opencv-python-headless"} & set(locked("webapp"))
    assert "tensorflow" in locked("ml")
    for package in REQUIREMENTS:
        assert not [name for name in locked(package) if "nvidia" in name]


def test_all_requirements_lock_the_same_versions() -> None:
    tested = locked("tests")

    for package in REQUIREMENTS:
        for name, versions in locked(package).items():
            assert versions == tested[name], f"{package}: {name}"
    assert set(locked("webapp")) <= set(locked("worker")) <= set(locked("ml")) <= set(tested)


def test_every_requirement_has_a_hash_and_no_address() -> None:
    for package in REQUIREMENTS:
        text = (PROJECT_ROOT / package / "requirements.txt").read_text()
        entries = re.findall(r"^[a-z0-9._-]+==.*\\\n    --hash=sha256:", text, re.M)
        assert len(entries) == len(re.findall(r"^[a-z0-9._-]+==", text, re.M)) > 0
        assert "://" not in text


def test_the_root_requirements_are_those_of_the_three_packages() -> None:
    lines = (PROJECT_ROOT / "requirements.txt").read_text().splitlines()

    assert [line for line in lines if not line.startswith("#")] == [
        f"-r {package}/requirements.txt" for package in REQUIREMENTS[:3]
    ]
