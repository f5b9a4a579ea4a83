import asyncio
import json
from typing import Any

import httpx
from asking import problem

from app.domain.records import Job, Result, now
from app.storage.catalog import Catalog


def parse(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


def running(catalog: Catalog) -> str:
    catalog.add(Job(id="j1", kind="train", spec={"kind": "train"}, created_at=now()))
    catalog.moved("j1", was={"queued"}, to="running", attempt=1)
    return "/v1/jobs/j1/events"


async def test_events_are_streamed_to_the_end(client: httpx.AsyncClient, catalog: Catalog) -> None:
    url = running(catalog)
    reading = asyncio.create_task(client.get(url))
    await asyncio.sleep(0.3)
    catalog.note("j1", 1, "progress", {"done": 1, "total": 2})
    catalog.note("j1", 1, "metrics", {"loss": float("nan")}, row={"loss": 1.0})
    catalog.note("j1", 1, "log", {"level": "info", "text": "line\nbreak – and \u2028"})
    catalog.moved("j1", was={"running"}, to="succeeded", attempt=1, result=Result(model="a@1"))
    answer = await asyncio.wait_for(reading, 120)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = parse(answer.text)
    assert [e[1] for e in events] == ["state", "state", "progress", "metrics", "log", "state"]
    assert [e[2]["status"] for e in events if e[1] == "state"] == ["queued", "running", "succeeded"]
    assert events[3][2] == {"loss": None}
    assert events[4][2]["text"] == "line\nbreak – and \u2028"
    again = await client.get(url, headers={"Last-Event-ID": events[2][0]})
    assert parse(again.text) == events[3:]
    assert (await client.get(url, headers={"Last-Event-ID": events[-1][0]})).status_code == 204
    assert parse((await client.get(url, headers={"Last-Event-ID": "nonsense"})).text) == events
    problem(await client.get("/v1/jobs/none/events"), 404)


async def test_a_retried_job_is_followed_past_its_failure(client: httpx.AsyncClient, catalog: Catalog) -> None:
    url = running(catalog)
    catalog.moved("j1", was={"running"}, to="failed", attempt=1, error={"detail": "no"})
    catalog.moved("j1", was={"failed"}, to="queued", attempt=1, next_attempt=2)
    reading = asyncio.create_task(client.get(url))
    await asyncio.sleep(0.5)
    assert not reading.done()
    catalog.moved("j1", was={"queued"}, to="cancelled")
    events = parse((await asyncio.wait_for(reading, 120)).text)
    assert [e[2]["status"] for e in events] == ["queued", "running", "failed", "queued", "cancelled"]
