"""The Dockerfile and the compose file, read: no image can be built in a test, but names that do not fit are seen."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = dict(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
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


def test_what_the_file_says_to_start_is_a_whole_that_wants_no_port_twice() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for command in re.findall(r"docker compose (.+)$", text, re.M):
        profiles = re.findall(r"--profile (\w+)", command)
        named = [word for word in re.split(r"\bup\b", command)[1].split() if not word.startswith("-")]
        started = named or [n for n, s in SERVICES.items() if set(s.get("profiles", profiles)) <= set(profiles)]
        ports = [port for name in started for port in SERVICES[name].get("ports", ())]
        assert len(ports) == len(set(ports)) == 1
        assert {name.removesuffix("-gpu") for name in started} >= {"app", "worker"}
        assert {need for name in started for need in SERVICES[name].get("depends_on", ())} >= {"redis"}


def test_versions_in_the_images_are_those_of_the_extra() -> None:
    extra = {requirement.name: requirement.specifier for requirement in map(Requirement, EXTRAS["gpu"])}
    tensorrt = re.findall(r"^ARG TENSORRT=(\S+)$", DOCKERFILE, re.M)
    pycuda = re.findall(r" pycuda==(\S+)$", DOCKERFILE, re.M)
    torch = set(re.findall(r"^RUN pip install (torch==\S+)", DOCKERFILE, re.M))
    assert len(tensorrt) == len(pycuda) == 1  # both images have the same: a plan runs on what built it
    assert tensorrt[0] in extra["tensorrt"]
    assert pycuda[0] in extra["pycuda"]
    assert torch == {requirement for requirement in EXTRAS["worker"] if requirement.startswith("torch==")}
    assert "tensorrt==$TENSORRT" in stage("base-gpu")
    # What pycuda is compiled with, and what TensorRT and torch bring, is of one CUDA: it says which driver is needed.
    assert re.search(r"^ARG CUDA=13\.", DOCKERFILE, re.M)
