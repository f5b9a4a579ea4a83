"""Ceiling: a raw ASGI application under uvicorn that reads the body and answers the same 40 bytes whatever it was."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import Ask, Options, Rows, Sample, flat, options

PACKAGES: tuple[str, ...] = ()


def ask(workload: str, sample: Sample) -> Ask | None:
    body = {"json": sample.text, "binary": sample.x.tobytes(), "jpeg": sample.jpeg}[workload.rpartition("-")[2]]
    return Ask("/", body, {"Content-Type": "application/octet-stream"})


def answer(body: bytes) -> Rows:
    return flat([])


def command(python: str, given: Options) -> list[str]:
    return given.command(python, __name__)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"40")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"0" * 40})


def main() -> None:
    import uvicorn

    port = options().port
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
