"""The folders for Kubernetes, rendered and held against its schemas, and against what the service really has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from running import Service

from app.domain.plans import pools_of, queue_of_runtime
from app.queue import NAMES
from app.settings import Settings
from workers import main as workers_main

from .kustomize import Document, containers, pod, rendered

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
WHOLE = ("one-machine", "cluster", "cluster-gpu")
DOCUMENTS = {name: rendered(KUBERNETES / name) for name in (*WHOLE, "monitoring")}
# Kinds that operators bring: kubernetes_validate has no schema of theirs. Fields of KEDA 2.15 and prometheus-operator.
OTHERS = {
    "ScaledObject": {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "triggers",
        "advanced",
    },
    "TriggerAuthentication": {"secretTargetRef"},
    "PodMonitor": {"selector", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
}  # fmt: skip


def named(name: str, kind: str, of: str | None = None) -> list[Document]:
    return [d for d in DOCUMENTS[name] if d["kind"] == kind and of in (None, d["metadata"]["name"])]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_one_of_kubernetes(name: str) -> None:
    for document in DOCUMENTS[name]:
        if document["kind"] in OTHERS:
            assert set(document["spec"]) <= OTHERS[document["kind"]]
        else:
            kubernetes_validate.validate(document, "1.33", strict=True)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "enginesmith"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kubectl_renders_the_same(name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    done = subprocess.run(["kubectl", "kustomize", KUBERNETES / name], capture_output=True, text=True)
    if "unknown command" in done.stderr:
        pytest.skip("needs kubectl")
    assert done.returncode == 0, done.stderr

    def order(document: Document) -> tuple[str, str]:
        return document["kind"], document["metadata"]["name"]

    theirs = sorted(yaml.safe_load_all(done.stdout), key=order)
    assert theirs == sorted(DOCUMENTS[name], key=order)


@pytest.mark.parametrize("name", WHOLE)
def test_nobody_has_more_rights_than_needed(name: str) -> None:
    for document in DOCUMENTS[name]:
        for container in containers(document):
            about = container["securityContext"]
            assert about["readOnlyRootFilesystem"] is True
            assert about["allowPrivilegeEscalation"] is False
            assert about["capabilities"] == {"drop": ["ALL"]}
            assert pod(document)["securityContext"]["runAsNonRoot"] is True
            assert pod(document)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod(document)["automountServiceAccountToken"] is False
            assert pod(document)["enableServiceLinks"] is False
            assert re.search(r":\d", container["image"]), "an image without a version"
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", WHOLE)
def test_policies_select_who_there_is_and_leave_nobody_out(name: str) -> None:
    policies = [d["spec"] for d in named(name, "NetworkPolicy")]
    everybody = [policy for policy in policies if policy["podSelector"] == {}]
    assert [set(policy["policyTypes"]) for policy in everybody] == [{"Ingress", "Egress"}]
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in DOCUMENTS[name] if pod(d)]
    own = [policy for policy in policies if policy["podSelector"]]
    for labels in pods:
        assert [p for p in own if p["podSelector"]["matchLabels"].items() <= labels.items()], labels
    for policy in own:
        assert [labels for labels in pods if policy["podSelector"]["matchLabels"].items() <= labels.items()]


@pytest.mark.parametrize("name", WHOLE)
def test_whatever_is_named_is_there(name: str) -> None:
    maps = {d["metadata"]["name"] for d in named(name, "ConfigMap")}
    deployments = {d["metadata"]["name"] for d in named(name, "Deployment")}
    secrets = secret_keys()
    known = {f"ENGINESMITH_{field.upper()}" for field in Settings.model_fields}
    for document in DOCUMENTS[name]:
        for container in containers(document):
            assert {source["configMapRef"]["name"] for source in container.get("envFrom", ())} <= maps
            given = {variable["name"] for variable in container["env"]}
            assert {variable for variable in given if variable.startswith("ENGINESMITH_")} <= known
            for variable in container["env"]:
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                if secret is not None:
                    assert secret["name"] == "enginesmith"
                    assert secret["key"] in secrets or secret.get("optional")
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for document in named(name, kind):
            assert document["spec"]["scaleTargetRef"]["name"] in deployments
    for told in named(name, "ConfigMap"):
        assert {key for key in told["data"] if key.startswith("ENGINESMITH_")} <= known


def secret_keys() -> set[str]:
    """Of the Secret that the README says to make."""
    return set(re.findall(r"--from-literal=([a-z-]+)=", (ROOT / "deploy" / "README.md").read_text()))


def test_pools_take_the_queues_that_they_are_scaled_by() -> None:
    for document in named("cluster-gpu", "ScaledObject"):
        target = document["spec"]["scaleTargetRef"]["name"]
        (worker,) = named("cluster-gpu", "Deployment", target)
        words = containers(worker)[0]["args"]
        (taken,) = [words[place + 1] for place, word in enumerate(words) if word == "--queues"]
        assert taken in NAMES
        lists = {t["metadata"]["listName"] for t in document["spec"]["triggers"] if t["type"] == "redis"}
        assert lists == {f"rq:queue:{taken}"} | ({f"rq:queue:{queue_of_runtime('tensorrt')}"} & lists)
        assert document["spec"]["minReplicaCount"] == 0
        told = document["spec"]["triggers"][-1]["metadata"]
        assert taken in told["query"]
        # What cannot be told is an error, and not a nought, which would take away workers with their jobs.
        assert "vector(0)" not in told["query"]
        assert told["ignoreNullValues"] == "false"
        if taken == "gpu":  # else nothing would be put there while none is alive
            (settings,) = named("cluster-gpu", "ConfigMap")
            pools = pools_of(Settings(pools=settings["data"]["ENGINESMITH_POOLS"]).pools)
            assert {f"rq:queue:{pool}" for pool in pools} == lists


def test_the_operator_is_given_the_same_alerts() -> None:
    (rule,) = named("monitoring", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())


def test_enough_time_is_left_to_end() -> None:
    for name in ("app", "worker-cpu", "worker-gpu"):
        (document,) = named("cluster-gpu", "Deployment", name)
        wait = containers(document)[0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])
        assert pod(document)["terminationGracePeriodSeconds"] > workers_main.STOP_S * 2 + float(wait[1])


def test_probes_ask_what_a_running_app_answers(service: Service) -> None:
    (app,) = named("cluster", "Deployment", "app")
    probes: list[dict[str, Any]] = [containers(app)[0][f"{name}Probe"] for name in ("startup", "liveness", "readiness")]
    for probe in probes:
        assert httpx.get(service.url + probe["httpGet"]["path"]).status_code == 200
