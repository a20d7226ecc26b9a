"""The Kubernetes manifests: against Kubernetes's published schemas, which `kubernetes-validate`
ships, against the compose file, and against what a cluster that trusts nobody asks for. No
container runs here.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from flask import Flask

from tests.webapp.test_compose import OURS, SERVICES
from webapp.config import PROJECT_ROOT
from webapp.metrics import Rows

FOLDER = PROJECT_ROOT / "deploy" / "kubernetes"
KUBERNETES = "1.37"
BASE: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
DICOM: dict[str, Any] = yaml.safe_load((FOLDER / "dicom" / "kustomization.yaml").read_text())
FILES = [
    *(FOLDER / name for name in BASE["resources"]),
    *(FOLDER / "dicom" / name for name in DICOM["resources"]),
]
OBJECTS: list[dict[str, Any]] = [
    one for file in FILES for one in yaml.safe_load_all(file.read_text())
]
OF_OTHERS = {"ScaledObject": "keda.sh/v1alpha1", "ServiceMonitor": "monitoring.coreos.com/v1"}
"""Kinds that Kubernetes itself does not know."""
WORKLOADS = {
    one["metadata"]["name"]: one for one in OBJECTS if one["kind"] in ("Deployment", "Job")
}
SERVICE_OF = {"migrate": "migrate", **{name: name for name in WORKLOADS}}
BROKER = "redis"


def named(kind: str, name: str) -> dict[str, Any]:
    """Return an object."""
    (match,) = [one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return match


def pod_of(name: str) -> dict[str, Any]:
    """Return the specification of a workload's pods."""
    spec: dict[str, Any] = WORKLOADS[name]["spec"]["template"]["spec"]
    return spec


def containers_of(name: str) -> list[dict[str, Any]]:
    """Return all containers of a workload's pods, those that run first included."""
    return [*pod_of(name).get("initContainers", []), *pod_of(name)["containers"]]


def secret_keys() -> set[str]:
    """Return the names in the example of the secret."""
    text = (FOLDER / "secrets.example.env").read_text()
    return set(re.findall(r"^([A-Z_0-9]+)=", text, re.M))


def environment_of(name: str) -> set[str]:
    """Return the names of all settings that a workload gets."""
    (container,) = pod_of(name)["containers"]
    names = {one["name"] for one in container.get("env", [])}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            names |= set(named("ConfigMap", source["configMapRef"]["name"])["data"])
        else:
            assert source["secretRef"]["name"] == "hemoscan-secrets"
            names |= secret_keys()
    return names


@pytest.mark.parametrize(
    "manifest",
    [one for one in OBJECTS if one["kind"] not in OF_OTHERS],
    ids=lambda one: f"{one['kind']}-{one['metadata']['name']}",
)
def test_every_object_obeys_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES


def test_a_misspelled_field_would_be_found() -> None:
    manifest = {**named("Service", "web"), "spec": {"selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_every_file_belongs_to_a_kustomization_and_lies_in_its_namespace() -> None:
    assert {*FILES, FOLDER / "kustomization.yaml", FOLDER / "dicom" / "kustomization.yaml"} == set(
        FOLDER.rglob("*.yaml")
    )
    assert BASE["kind"] == "Kustomization" and DICOM["kind"] == "Component"
    assert BASE["namespace"] == named("Namespace", "hemoscan")["metadata"]["name"]
    assert not any("namespace" in one["metadata"] for one in OBJECTS)
    kinds = {one["kind"]: one["apiVersion"] for one in OBJECTS if one["kind"] in OF_OTHERS}
    assert kinds == OF_OTHERS


def test_every_part_of_the_service_is_there() -> None:
    parts = set(WORKLOADS) - {BROKER}
    assert set(OURS) == parts
    assert {image["name"] for image in BASE["images"]} == {SERVICES[name]["image"] for name in OURS}


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name in OURS])
def test_a_part_is_what_the_compose_file_says(name: str) -> None:
    (container,) = pod_of(name)["containers"]
    service = SERVICES[name]
    assert container["args"] == shlex.split(service["command"])
    assert container["image"] == service["image"]
    memory = re.sub(r"^\$\{[A-Z_]+:-(.+)\}$", r"\1", str(service["mem_limit"]))
    assert container["resources"]["limits"]["memory"] == f"{memory[:-1]}{memory[-1].upper()}i"
    assert pod_of(name)["terminationGracePeriodSeconds"] == int(service["stop_grace_period"][:-1])
    assert set(service["environment"]) <= environment_of(name)


def test_the_broker_is_that_of_the_compose_file() -> None:
    (container,) = pod_of(BROKER)["containers"]
    assert container["args"] == shlex.split(SERVICES[BROKER]["command"])
    assert container["image"] in SERVICES[BROKER]["image"]
    port = named("Service", BROKER)["spec"]["ports"][0]["port"]
    settings = named("ConfigMap", "hemoscan-settings")["data"]
    assert settings["BROKER_URL"] == f"redis://{BROKER}:{port}/0"


def test_every_setting_is_a_known_one_and_no_secret_stands_in_a_manifest() -> None:
    documented = set(re.findall(r"`([A-Z_0-9]+)`", (PROJECT_ROOT / "docs/settings.md").read_text()))
    for name in set(WORKLOADS) - {BROKER}:
        assert environment_of(name) <= documented, name
    for one in OBJECTS:
        if one["kind"] == "ConfigMap":
            assert not set(one["data"]) & secret_keys()
    assert not any(one["kind"] == "Secret" for one in OBJECTS)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pod_is_confined(name: str) -> None:
    pod = pod_of(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # They would set WEB_PORT, among others.
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers_of(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        if name != BROKER:
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts == {volume["name"] for volume in pod["volumes"]} == {"tmp", "work"}


@pytest.mark.parametrize("name", sorted(set(WORKLOADS) - {BROKER, "migrate"}))
def test_every_part_waits_for_the_tables(name: str) -> None:
    (waits,) = pod_of(name)["initContainers"]
    assert waits["image"] == "hemoscan-web"  # The others have no migrations.
    assert "flask --app webapp db check" in waits["args"][0]


def test_web_is_probed_on_its_health_endpoint_under_a_host_that_is_trusted(app: Flask) -> None:
    (container,) = pod_of("web")["containers"]
    app.config["TRUSTED_HOSTS"] = ["scans.example.org", "127.0.0.1", "localhost"]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[name]["httpGet"]
        (host,) = probe["httpHeaders"]
        assert probe["port"] == container["ports"][0]["name"]
        answer = app.test_client().get(probe["path"], headers={host["name"]: host["value"]})
        assert (answer.status_code, answer.json) == (200, {"status": "up"})


def test_predict_workers_follow_the_queue_that_metrics_tell(app: Flask) -> None:
    scaled = named("ScaledObject", "worker-predict")["spec"]
    assert set(scaled) <= {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "fallback",
        "advanced",
        "triggers",
    }
    assert scaled["scaleTargetRef"] == {"name": "worker-predict"}
    assert "replicas" not in WORKLOADS["worker-predict"]["spec"]  # It would undo the scaling.
    assert 1 <= scaled["minReplicaCount"] <= scaled["fallback"]["replicas"]
    assert scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    (trigger,) = scaled["triggers"]
    metadata = trigger["metadata"]
    assert trigger["type"] == "prometheus"
    assert all(isinstance(value, str) for value in metadata.values())
    assert int(metadata["threshold"]) == app.config["PREDICT_BATCH"]
    metric, queue = re.fullmatch(r'max\((\w+)\{queue="(\w+)"\}\)', metadata["query"]).groups()  # type: ignore[union-attr]
    with app.app_context():
        values = {
            (sample.name, sample.labels.get("queue"))
            for family in Rows().collect()
            for sample in family.samples
        }
    assert (metric, queue) in values


def test_prometheus_finds_metrics_and_the_token() -> None:
    monitor = named("ServiceMonitor", "hemoscan")["spec"]
    service = named("Service", "web")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["path"] == "/metrics"
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["name"] == "hemoscan-secrets" and credentials["key"] in secret_keys()


def test_nobody_is_reached_but_where_a_policy_says_so() -> None:
    policies = {
        one["metadata"]["name"]: one["spec"] for one in OBJECTS if one["kind"] == "NetworkPolicy"
    }
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    shared = policies["parts-reach-what-they-share"]["podSelector"]["matchExpressions"][0]
    assert set(shared["values"]) == set(WORKLOADS) - {BROKER}
    sends = policies["beat-sends-results"]
    assert sends["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "beat"}
    assert {port["port"] for port in sends["egress"][0]["ports"]} == {104, 11112}
    open_to = {
        spec["podSelector"]["matchLabels"]["app.kubernetes.io/name"]: [
            port["port"] for rule in spec["ingress"] for port in rule["ports"]
        ]
        for spec in policies.values()
        if "ingress" in spec
    }
    assert open_to == {BROKER: [6379], "web": [8000], "dicom-listen": [11112]}
    for name, ports in open_to.items():
        (container,) = pod_of(name)["containers"]
        assert [port["containerPort"] for port in container["ports"]] == ports


def test_services_and_budgets_choose_the_pods_that_there_are() -> None:
    labels = {
        name: one["spec"]["template"]["metadata"]["labels"] for name, one in WORKLOADS.items()
    }
    for one in OBJECTS:
        selector = one.get("spec", {}).get("selector") or {}
        chosen = selector.get("matchLabels", selector)
        if one["kind"] in ("Service", "Deployment", "PodDisruptionBudget"):
            assert chosen.items() <= labels[one["metadata"]["name"]].items()
    for name, own in labels.items():
        assert own == {
            "app.kubernetes.io/name": name,
            "app.kubernetes.io/part-of": "hemoscan",
        }


def test_the_page_that_tells_how_to_use_them_names_every_file_to_fill_in() -> None:
    page = (PROJECT_ROOT / "docs" / "operations.md").read_text()
    for name in ("kubectl apply -k", "secrets.example.env", "settings.yaml", "autoscaler.yaml"):
        assert name in page
    assert Path(FOLDER).relative_to(PROJECT_ROOT).as_posix() in page
