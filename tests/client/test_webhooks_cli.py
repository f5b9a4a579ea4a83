"""`enginesmith webhooks` and `usage`, against a running service and a receiver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from enginesmith import cli, verify_webhook
from receiving import receiver
from running import Service, start_service, until


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Service]:
    started = start_service(tmp_path / "service", workers=0, ENGINESMITH_WEBHOOKS_ALLOW="127.0.0.1/32")
    yield started
    assert started.stop() == 0


def test_added_pinged_and_deleted(own: Service, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--url", own.url, *words])
        said = capfd.readouterr()
        assert ended.value.code in (code, None), said.err
        return said.out if code == 0 else said.err

    with receiver() as heard:
        heard.held.set()
        id, secret = run("webhooks", "add", heard.url, "--event", "job.failed").split()
        assert heard.url in run("webhooks", "list")
        run("webhooks", "ping", id)
        until(lambda: bool(heard.calls))
        event = verify_webhook(heard.calls[0].body, heard.calls[0].headers["Enginesmith-Signature"], secret)
        assert event["event"] == "ping"
        until(lambda: json.loads(run("webhooks", "show", id, "--json"))["delivered"] == 1)
        assert secret not in run("webhooks", "show", id)
        assert run("webhooks", "delete", id) == f"deleted {id}\n"
        assert json.loads(run("webhooks", "list", "--json")) == {"items": []}
        assert "webhook" in run("webhooks", "show", id, code=1)
    assert json.loads(run("usage", "--json"))["disk"]["free_bytes"] > 0
