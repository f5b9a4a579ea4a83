"""The Dockerfile and the compose file, read: no image can be built in a test, but names that do not fit are seen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from packaging.requirements import Requirement

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
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
def test_nobody_runs_as_root_and_somebody_buries_the_dead(name: str) -> None:
    told = stage(name) if name.endswith("-gpu") else stage("base") + stage(name)
    assert "\nUSER 10001:10001\n" in told
    assert '\nENTRYPOINT ["tini", "--"]\n' in told
    assert '\nCMD ["enginesmith", ' in told
    assert "\nHEALTHCHECK " in told
    assert ENVIRONMENT[name.removesuffix("-gpu")] <= set(re.findall(r"[A-Z_]+=[^ \n]+", told))


ENVIRONMENT = {
    "app": {"ENGINESMITH_DATA=/data", "HOME=/data", "ENGINESMITH_HOST=0.0.0.0", "ENGINESMITH_PORT=8000"},
    "worker": {"ENGINESMITH_DATA=/data", "HOME=/data"},
}


@pytest.mark.parametrize("name", ["build-app", "build-worker", "app-gpu", "worker-gpu"])
def test_packages_are_hashed(name: str) -> None:
    kind = name.removeprefix("build-").removesuffix("-gpu")
    installed = re.findall(r"pip install ([^&\n]+)", stage(name))
    wanted = [f"--no-deps --require-hashes --requirement deploy/locks/{kind}.txt", "--no-deps --no-build-isolation ."]
    if name == "worker-gpu":
        wanted.insert(0, "--no-deps --require-hashes --requirement deploy/locks/torch-cuda.txt")
    if name == "build-worker":
        wanted.insert(0, '--no-deps --index-url "$TORCH_INDEX" "torch==$TORCH"')
    assert [words.strip() for words in installed] == wanted
    assert "pip check" in stage(name)


def test_images_for_gpus_come_from_nvidia() -> None:
    images = {image for image in STAGES if image.startswith("nvidia/")}
    assert images == {"nvidia/cuda:${CUDA}-devel-ubuntu24.04", "nvidia/cuda:${CUDA}-base-ubuntu24.04"}


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint has no wheel for this machine")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_is_of_its_schema_and_finds_its_files() -> None:
    told = re.sub(r"\$\{\w+:[-?]([^${}]*|\$\{\w+\})\}", r"\1", yaml.safe_dump(COMPOSE, width=1000))
    compose_spec.PyCompose.from_yaml(told)
    for config in COMPOSE["configs"].values():
        assert "content" in config or (ROOT / config["file"]).is_file()
    for service in SERVICES.values():
        assert {config["source"] for config in service.get("configs", ())} <= set(COMPOSE["configs"])
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")  # TLS is a proxy's business, in front
        assert re.search(r":v?\d", service["image"]) if "image" in service else service["read_only"]


def test_prometheus_and_grafana_find_each_other() -> None:
    targets = {config["target"] for config in SERVICES["prometheus"]["configs"]}
    told = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (scrape,) = told["scrape_configs"]
    assert {f"/etc/prometheus/{name}" for name in told["rule_files"]} < targets
    shared = "keys:/etc/prometheus/keys:ro"
    assert shared in SERVICES["prometheus"]["volumes"]
    assert scrape["authorization"]["credentials_file"] == "/etc/prometheus/keys/metrics"
    assert " /keys/metrics " in SERVICES["keys"]["command"][2]
    assert "keys:/keys" in SERVICES["keys"]["volumes"]
    assert scrape["dns_sd_configs"][0]["names"] == ["app"]
    (source,) = yaml.safe_load((ROOT / "deploy" / "grafana" / "sources.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    board = json.loads((ROOT / "deploy" / "grafana" / "enginesmith.json").read_text())
    assert {p["datasource"]["uid"] for p in board["panels"] if p["type"] != "row"} == {source["uid"]}
    (provider,) = yaml.safe_load((ROOT / "deploy" / "grafana" / "dashboards.yml").read_text())["providers"]
    boards = {config["target"] for config in SERVICES["grafana"]["configs"]}
    assert f"{provider['options']['path']}/enginesmith.json" in boards


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
    for command in re.findall(r"docker compose (.*\bup\b.*)$", text, re.M):
        profiles = re.findall(r"--profile (\w+)", command)
        named = [word for word in re.split(r"\bup\b", command)[1].split() if not word.startswith("-")]
        started = named or [n for n, s in SERVICES.items() if set(s.get("profiles", profiles)) <= set(profiles)]
        ports = [port for name in started for port in SERVICES[name].get("ports", ())]
        assert len(ports) == len(set(ports)) == 3  # ours, Prometheus', Grafana's
        assert {name.removesuffix("-gpu") for name in started} >= {"app", "worker"}
        assert {need for name in started for need in SERVICES[name].get("depends_on", ())} <= set(started)


def test_versions_in_the_images_are_those_of_the_extra() -> None:
    extra = {requirement.name: requirement.specifier for requirement in map(Requirement, EXTRAS["gpu"])}
    tensorrt = re.findall(r"^ARG TENSORRT=(\S+)$", DOCKERFILE, re.M)
    pycuda = re.findall(r" pycuda==(\S+)$", DOCKERFILE, re.M)
    torch = {f"torch=={version}" for version in re.findall(r"^ARG TORCH=(\S+)$", DOCKERFILE, re.M)}
    assert len(tensorrt) == len(pycuda) == 1  # both images have the same: a plan runs on what built it
    assert tensorrt[0] in extra["tensorrt"]
    assert pycuda[0] in extra["pycuda"]
    assert torch == {requirement for requirement in EXTRAS["worker"] if requirement.startswith("torch==")}
    assert "tensorrt==$TENSORRT" in stage("base-gpu")
    # What pycuda is compiled with, and what TensorRT and torch bring, is of one CUDA: it says which driver is needed.
    assert re.search(r"^ARG CUDA=13\.", DOCKERFILE, re.M)


def test_the_keys_of_compose_are_made_once_and_fit(tmp_path: Path) -> None:
    script = SERVICES["keys"]["command"][2].replace("$$", "$")
    for place in ("/keys/", "/data/"):
        (tmp_path / place.strip("/")).mkdir()
        script = script.replace(place, f"{tmp_path}{place}")
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ENGINESMITH_DATA": f"{tmp_path}/data"}

    def made(**more: str) -> list[str]:
        subprocess.run(["sh", "-c", script], env=environ | more, check=True, capture_output=True, timeout=120)
        return sorted(path.read_text() for path in tmp_path.glob("*/*") if path.is_file())

    assert len(made(ENGINESMITH_API_KEYS="of-their-own")) == 1
    both = made()
    assert len(both) == 2
    assert made() == both
