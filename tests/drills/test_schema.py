"""schemathesis tries what the OpenAPI page allows, and what it forbids: nothing is a 5xx, nothing is undocumented."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from enginesmith import Client
from networks import Mlp

from .conftest import Start
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KEY = "a-key-for-schemathesis"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
PHASES = {"once each": "examples,coverage", "at random": "fuzzing", "one after the other": "stateful"}
EXAMPLES = os.environ.get("DRILLS_EXAMPLES", "25")
PROGRAM = Path(sys.executable).parent / "schemathesis"


def strict(page: dict[str, Any]) -> dict[str, Any]:
    """The page without `default`, so that every status has to be named; without deadlines, which pass, and that is a
    504; and without bodies that schemathesis cannot write."""
    for routes in page["paths"].values():
        for route in routes.values():
            route["responses"].pop("default", None)
            route["parameters"] = [p for p in route.get("parameters", ()) if p["name"] != "X-Timeout-Ms"]
            content = route.get("requestBody", {}).get("content", {})
            for kind in [kind for kind in content if kind not in ("application/json", "multipart/form-data")]:
                del content[kind]
    return page


@pytest.mark.parametrize("phases", PHASES.values(), ids=list(PHASES))
@pytest.mark.parametrize("key", [KEY, None], ids=["with a key", "without"])
def test_what_the_page_allows_and_forbids(
    key: str | None, phases: str, start: Start, tmp_path: Path, tell: Tell
) -> None:
    if not PROGRAM.exists():
        pytest.skip("needs schemathesis: make setup EXTRAS=drills")
    service = start(workers=1, **({"ENGINESMITH_API_KEYS": KEY} if key else {}))
    with Client(service.url, key=key) as client:
        client.push(Mlp(), "net", example=torch.zeros(1, 12), wait=True)
        client.deploy("web", client.jobs.submit("convert", model="net@1", target="onnxruntime", wait=True))
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(strict(httpx.get(f"{service.url}/openapi.json").json())))
    words = [PROGRAM, "run", schema, "--url", service.url, "--phases", phases, "--checks"]
    words += [",".join(CHECKS if key else CHECKS[:-1])]
    words += ["--max-examples", EXAMPLES, "--generation-database", "none", "--no-color", "--warnings", "off"]
    words += ["--request-timeout", "90", "--no-shrink", "--continue-on-failure", "--suppress-health-check", "all"]
    words += ["--header", f"Authorization: Bearer {key}"] if key else []
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stdout[-12000:]
    assert httpx.get(f"{service.url}/healthz/ready").status_code == 200
    assert "Traceback" not in (service.data / "service.log").read_text()
    (cases,) = re.findall(r"^ *([\d,]+) generated", done.stdout, re.M)
    who = "with a key" if key else "without"
    tell(f"{phases}, {who}: {cases} cases; no 5xx, no undocumented status")
