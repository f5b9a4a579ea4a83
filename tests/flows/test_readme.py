"""The README's five lines of curl, executed as printed against a real service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enginesmith import Client
from running import start_service

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def curl_lines() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith("curl ")]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of a service with nothing in it yet."""
    started = start_service(tmp_path / "service")
    yield started.url
    started.stop()


def settled(url: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, or what became of it where a busy machine needs more than the minute that the line waits."""
    with Client(url) as client:
        if answer.get("status") in ("queued", "running"):
            return dict(client.jobs.wait(answer["id"], check=False))
        if answer.get("status") == "loading":
            return dict(client.deployments.settled(client.deployments.get(answer["name"]), 240))
    return answer


@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_from_upload_to_predict(url: str, tmp_path: Path) -> None:
    # What `make example` runs.
    subprocess.run([sys.executable, "-m", "demo.example", tmp_path / "example"], cwd=ROOT, check=True, timeout=600)
    answers: list[dict[str, Any]] = []
    lines = curl_lines()
    assert len(lines) == 5
    for line in lines:
        # As printed: the URL is the shell's, as the README says.
        ran = subprocess.run(
            ["bash", "-euc", line],
            cwd=tmp_path,
            env=os.environ | {"URL": url, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ran.returncode == 0, ran.stderr
        answers.append(settled(url, json.loads(ran.stdout)))
        assert "hint" not in answers[-1], answers[-1]
    upload, dataset, convert, deployment, prediction = answers
    assert (upload["status"], upload["result"]["model"]) == ("succeeded", "digits@1")
    assert dataset["name"] == "digits"
    assert (convert["status"], convert["result"]["model"]) == ("succeeded", "digits@2")
    assert (deployment["model"], deployment["status"]) == ("digits@2", "ready")
    assert prediction["model"] == "digits@2"
    assert len(prediction["predictions"][0]) == 3
    assert prediction["predictions"][0][0]["label"] == "3"


def test_the_table_of_jobs_is_the_menu() -> None:
    from app.domain.specs import MENU, NOT_SUBMITTED

    named = re.findall(r"^\| `(\w+)` \|", README.read_text().split("## What it does to a model")[1], re.MULTILINE)
    assert {*MENU, "openvino", "onnxruntime"} - set(NOT_SUBMITTED) <= set(named)
