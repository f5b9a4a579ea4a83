"""`enginesmith bench` against a service: what it reports, and that --tune leaves a deployment better or as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from enginesmith import Client, cli
from enginesmith.bench import Bench, engine_of
from enginesmith.bench_advice import Changed, tune
from enginesmith.bench_inputs import made_up
from running import Service, start_service

from app.settings import Settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def served(settings: Settings, publish: Any) -> Iterator[Service]:
    """A service over the store of this test, with a deployment."""
    publish(factor=2.0)
    assert settings.redis_url is not None
    service = start_service(settings.data, workers=0, ENGINESMITH_REDIS_URL=settings.redis_url)
    try:
        with Client(service.url) as client:
            client.deploy("net", "net@1", max_queue=500)
        yield service
    finally:
        service.stop()


@pytest.fixture
def run(served: Service, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--url", served.url, *words])
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return command


def test_a_bench_and_its_tuning(served: Service, run: Run, tmp_path: Path) -> None:
    reported(run, tmp_path)
    tuned(served)


def reported(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    code, out, err = run(
        "bench", "net", "--seconds", "0.3", "--concurrency", "1,4", "--rate", "50", "--save", str(file)
    )
    assert code == 0, err
    found = json.loads(file.read_text())
    assert out.startswith(file.with_suffix(".txt").read_text())
    assert "50/s constant" in out
    assert [point["concurrency"] for point in found["sweep"]] == [1, 4]
    for point in [*found["sweep"], found["open"]]:
        assert point["requests"] > 0
        assert point["per_s"] == pytest.approx(point["requests"] / point["seconds"], rel=0.01)
        assert 0 < point["p50_ms"] <= point["p95_ms"] <= point["p99_ms"] <= point["max_ms"]
        assert (point["refused"], point["errors"]) == (0, {})
        assert point["batch"]["runs"] > 0
        assert point["batch"]["mean"] >= 1
        assert point["server_cpu_ms"] > 0
        assert 0 < point["generator_cpu"] < 5
    assert found["open"]["requests"] == 15
    assert found["best"]["per_s"] == max(point["per_s"] for point in found["sweep"])
    assert found["deployment"]["model"] == "net@1"
    assert found["engine"]["format"] == "onnxruntime"
    assert found["input"] == {
        "content_type": "application/x-npy", "rows": 1, "bytes": 140, "told": "random x float32 [1, 3]",
    }  # fmt: skip
    assert found["service_version"]
    assert found["client"]["cores"]
    assert found["at"]
    assert found["command"]
    assert {"max_batch", "instances", "threads", "why"} <= found["suggestion"].keys()

    rows = tmp_path / "rows.json"
    rows.write_text("[[1, 2, 3], [4, 5, 6]]")
    code, out, err = run(
        "--json", "bench", "net", "--input", str(rows), "--seconds", "0.2", "--concurrency", "2", "--rate", "0",
        "--save", str(file),
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["input"]["content_type"] == "application/json"
    assert told["open"] is None
    assert told["saved"] == str(file)
    assert told["sweep"][0]["batch"]["mean"] >= 1

    assert run("bench", "nope")[0] == 1
    assert run("bench", "net", "--concurrency", "many")[0] == 2
    assert run("bench", "net", "--save", str(tmp_path / "nowhere" / "x.json"))[0] == 2
    rows.write_text("[[1, 2]]")
    code, _, err = run("bench", "net", "--input", str(rows))
    assert (code, "bad_tensor" in err) == (1, True)


def tuned(served: Service) -> None:
    """Whatever happens, the deployment ends with the best settings found, or as it was."""
    with Client(served.url) as client:
        before = client.deployments.get("net")
        bench = Bench(client, "net", made_up(engine_of(client, before), False, 1), 0.05)

        def interrupted(after: int) -> Callable[[str], None]:
            said: list[str] = []

            def say(text: str) -> None:
                said.append(text)
                if len(said) > after:
                    raise KeyboardInterrupt

            return say

        with pytest.raises(KeyboardInterrupt):
            tune(bench, before, 8, 2, 2, interrupted(3))
        after = client.deployments.get("net")
        kept = ("model", "instances", "max_batch", "max_delay_ms", "max_queue", "threads", "force")
        assert {k: after[k] for k in kept} == {k: before[k] for k in kept}
        assert after["generation"] > before["generation"]
        assert after["status"] == "ready"

        found = tune(bench, after, 8, 2, 2, lambda text: None)
        ended = client.deployments.get("net")
        assert {k: ended[k] for k in found["chosen"]} == found["chosen"]
        assert ended["max_queue"] == 500
        assert found["applied"] == (found["chosen"] != found["original"])
        assert len(found["candidates"]) >= 4
        assert all(tried["per_s"] >= 0 for tried in found["candidates"])

        def meddling(text: str) -> None:
            client.deploy("net", "net@1", max_queue=77)

        with pytest.raises(Changed):
            tune(bench, ended, 8, 2, 2, meddling)
        assert client.deployments.get("net")["max_queue"] == 77
