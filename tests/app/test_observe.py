import io
import json
import logging

import httpx

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
