import io
import json
import logging

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app import observe
from app.metrics import Meters
from app.observe import JsonLines, about_job, configure_logs, exposition


async def test_a_request_has_an_id_and_is_counted(client: httpx.AsyncClient) -> None:
    mine = await client.get("/v1/models", headers={"X-Request-Id": "abc-1"})
    assert mine.headers["x-request-id"] == "abc-1"
    other = await client.get("/v1/models", headers={"X-Request-Id": "bad\tid"})
    assert len(other.headers["x-request-id"]) == 32
    await client.get("/v1/models/nope")
    text = exposition().decode()
    assert 'enginesmith_http_requests_total{method="GET",route="/v1/models",status="200"}' in text
    assert 'enginesmith_http_requests_total{method="GET",route="/v1/models/{name}",status="404"}' in text


async def test_unknown_paths_make_no_series_of_their_own(client: httpx.AsyncClient) -> None:
    await client.get("/v1/../etc/passwd-7391")
    await client.request("BREW", "/v1/models")
    assert "passwd-7391" not in exposition().decode()
    assert "BREW" not in exposition().decode()


def test_logs_are_json_with_the_job() -> None:
    held = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logs("INFO", "test", held)
        with about_job("j1"):
            logging.getLogger("x").info("loaded %d", 3, extra={"rows": 7})
        try:
            raise ValueError("oops")
        except ValueError:
            logging.getLogger("x").exception("failed")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    first, second = map(json.loads, held.getvalue().splitlines())
    assert (first["message"], first["job_id"], first["rows"], first["process"]) == ("loaded 3", "j1", 7, "test")
    assert "ValueError: oops" in second["trace"]
    assert isinstance(JsonLines("x"), logging.Formatter)


async def test_the_access_log_has_a_line_for_every_request(client: httpx.AsyncClient) -> None:
    held = io.StringIO()
    observe.log_access("app", held)
    try:
        answer = await client.get("/v1/models/nope?x=1", headers={"X-Request-Id": "abc"})
    finally:
        observe.log_no_access()
    await client.get("/v1/models")
    (line,) = map(json.loads, held.getvalue().splitlines())
    assert line.pop("ms") > 0
    assert line.pop("pid") > 0
    assert line.pop("time")
    assert line.pop("client")
    assert line == {
        "level": "INFO", "process": "app", "logger": "enginesmith.access", "method": "GET",
        "route": "/v1/models/{name}", "path": "/v1/models/nope", "status": 404, "bytes": len(answer.content),
        "request_id": "abc",
    }  # fmt: skip


def test_what_is_answered_is_counted_and_logged_with_its_detail() -> None:
    held = io.StringIO()
    observe.log_access("app", held)
    try:
        about = {"deployment": "digits", "model": "net@3"}
        route = "/test/{odd}"
        observe.answered("POST", route, 200, 0.002, path="/x\udc80", request_id="r", size=7, detail=about)
        observe.answered("POST", route, 429, 400.0, path="/x", request_id="r")
        for n in range(3):
            observe.answered(f"BREW{n}", route, 405, 0.0, path="/x", request_id="r")
    finally:
        observe.log_no_access()
    first = json.loads(held.getvalue().splitlines()[0])
    assert (first["deployment"], first["model"], first["ms"], first["bytes"]) == ("digits", "net@3", 2.0, 7)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposition().decode())
        for sample in family.samples
        if sample.labels.get("route") == route
    }
    assert samples["enginesmith_http_requests_total", "POST", route, "200"] == 1
    assert samples["enginesmith_http_requests_total", "other", route, "405"] == 3
    assert samples["enginesmith_http_request_seconds_bucket", "0.001", "POST", route] == 0
    assert samples["enginesmith_http_request_seconds_bucket", "0.0025", "POST", route] == 1
    assert samples["enginesmith_http_request_seconds_bucket", "300.0", "POST", route] == 1
    assert samples["enginesmith_http_request_seconds_bucket", "+Inf", "POST", route] == 2
    assert samples["enginesmith_http_request_seconds_count", "POST", route] == 2


async def test_metrics_are_in_prometheus_form(client: httpx.AsyncClient) -> None:
    await client.get("/v1/models")
    text = (await client.get("/metrics")).text
    heads = [tuple(line.split()[1:3]) for line in text.splitlines() if line.startswith("#")]
    assert len(heads) == len(set(heads)), "a family's HELP and TYPE stand once"
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {"nv_inference_count", "enginesmith_http_requests", "process_cpu_seconds"} <= families.keys()
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    seen = [(s.name, tuple(sorted(s.labels.items()))) for family in families.values() for s in family.samples]
    assert len(seen) == len(set(seen)), "a series stands once"


def test_odd_names_are_escaped() -> None:
    meters = Meters()
    odd = 'a "b" \\ c\nd'
    meters.of(odd, "net@1").rows = 3
    families = {family.name: family for family in text_string_to_metric_families(meters.exposition())}
    (sample,) = families["nv_inference_count"].samples
    assert (sample.labels, sample.value) == ({"model": odd, "version": "1"}, 3)
