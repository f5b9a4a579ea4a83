"""Every metric that an alert, a panel or an autoscaler asks for is one that a running app tells, with these labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import promql_parser
import pytest
import torch
import yaml
from enginesmith import Client
from networks import Mlp
from running import Service

from .test_kubernetes import named

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# What Prometheus adds to every series.
ADDED = {"job", "instance", "namespace", "pod", "le", "__name__"}
# Told only once there is something to tell, which here may not be; where in the code they are.
SELDOM = {
    "enginesmith_refused_total": "app/metrics.py",
    "enginesmith_jobs": "app/operating.py",
    "enginesmith_webhook_deliveries": "app/operating.py",
    "enginesmith_canary_returns_total": "app/serving/fleet_metrics.py",
}

# With a GPU, a shadow, a job that ended, an upload.
RARE = {
    "enginesmith_engine_gpu_bytes", "enginesmith_gpu_stage_seconds", "enginesmith_gpu_graph_runs_total",
    "enginesmith_shadow_requests_total", "enginesmith_shadow_", "enginesmith_jobs_ended_total",
    "enginesmith_uploaded_bytes_total",
}  # fmt: skip


def asked() -> Iterator[tuple[str, str]]:
    """Where, and what."""
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for panel in json.loads((DEPLOY / "grafana" / "enginesmith.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"].replace("$__rate_interval", "1m")
    for scaled in named("cluster-gpu", "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            if trigger["type"] == "prometheus":
                yield scaled["metadata"]["name"], trigger["metadata"]["query"]
    (scaler,) = named("cluster", "HorizontalPodAutoscaler")
    yield "autoscaler", scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yml").read_text())["rules"]["custom"]
    yield "adapter", rule["seriesQuery"]


ASKED = list(asked())


@pytest.fixture(scope="module")
def told(service: Service) -> dict[str, set[str]]:
    """Each series of /metrics, with its labels, once something has been served."""
    x = torch.zeros(1, 12)
    with Client(service.url) as client:
        client.push(Mlp(), "dashboards", example=x, wait=True)
        client.deploy(
            "dashboards", client.jobs.submit("convert", wait=True, model="dashboards@1", target="onnxruntime")
        )
        client.predict("dashboards", x.numpy())
    series: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", httpx.get(f"{service.url}/metrics").text, re.M):
        series.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return series


@pytest.mark.parametrize(("where", "query"), ASKED, ids=[where for where, _ in ASKED])
def test_asks_for_what_is_told(where: str, query: str, told: dict[str, set[str]]) -> None:
    promql_parser.parse(query)
    for name in re.findall(r"\b(?:enginesmith|nv|process)_[a-z_]+\b", query):
        if name in SELDOM and name not in told:
            code = (ROOT / SELDOM[name]).read_text().replace('"enginesmith_', '"')
            assert f'"{name.removeprefix("enginesmith_")}"' in code
            continue
        assert name in told
        selectors = re.findall(name + r"\{([^}]*)\}", query)
        labels = {label for selector in selectors for label in re.findall(r"(\w+)[=!]", selector)}
        assert labels <= told[name] | ADDED
    for grouped in re.findall(r"\bby \(([a-z_, ]+)\)", query):
        wanted = set(grouped.split(", ")) - ADDED
        names = [name for name in re.findall(r"\b(?:enginesmith|nv)_[a-z_]+\b", query) if name in told]
        is_seldom = any(name not in told for name in re.findall(r"\b(?:enginesmith|nv)_[a-z_]+\b", query))
        assert is_seldom or any(wanted <= told[name] for name in names)


def test_operations_explains_whatever_is_told(told: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    explained = set(re.findall(r"\b(?:enginesmith|nv|process)_[a-z_]+", text))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in explained else name for name in told}
    assert {name for name in families - explained if not name.endswith("_created")} == set()
    assert explained - families <= {*SELDOM, *RARE}
