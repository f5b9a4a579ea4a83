"""The Dockerfile and the compose file, read: no image can be built in a test, but names that do not fit are seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def stage(name: str) -> str:
    return re.split(r"^FROM ", DOCKERFILE.split(f" AS {name}\n")[1], flags=re.M)[0]


def test_what_is_copied_is_there_and_sent_to_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored


@pytest.mark.parametrize("name", ["app", "worker", "app-gpu", "worker-gpu"])
def test_nobody_runs_as_root(name: str) -> None:
    told = stage(name)
    assert "\nUSER enginesmith\n" in told
    assert 'CMD ["enginesmith", ' in told
    assert ("HEALTHCHECK" in told) == name.startswith("app")


def test_an_image_for_gpus_is_the_other_one_with_an_extra() -> None:
    for name in ("app", "worker"):
        plain, gpu = (
            [line for line in stage(of).splitlines() if not re.match(r"#|ARG|RUN pip install (\.|'|torch)", line)]
            for of in (name, f"{name}-gpu")
        )
        assert [line for line in plain if line] == [line for line in gpu if line]
        assert f"pip install '.[{name},gpu]'" in stage(f"{name}-gpu")
    images = {image for image in STAGES if image.startswith("nvidia/")}
    assert images == {"nvidia/cuda:${CUDA}-devel-ubuntu24.04", "nvidia/cuda:${CUDA}-base-ubuntu24.04"}


def test_services_name_stages_and_settings_that_there_are() -> None:
    assert {s["build"]["target"] for s in SERVICES.values() if "build" in s} == {
        "app", "worker", "app-gpu", "worker-gpu",
    }  # fmt: skip
    known = {f"ENGINESMITH_{name.upper()}" for name in Settings.model_fields}
    for service in (s for s in SERVICES.values() if "build" in s):
        assert {name for name in service["environment"] if name.startswith("ENGINESMITH_")} <= known


def test_gpus_are_reserved_for_those_that_use_them() -> None:
    for name, service in SERVICES.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert bool(devices) == name.endswith("-gpu")
        assert (service.get("profiles") == ["gpu"]) == name.endswith("-gpu")
        for device in devices:
            assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    # Both would serve the same deployments at the same address: one of them is left out.
    for name in ("app", "worker"):
        assert SERVICES[name]["deploy"]["replicas"] == "${CPU_REPLICAS:-1}"
