"""`python -m app`: serve (everything), http (the app alone), reindex."""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from app.errors import Problem
from app.settings import Settings


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="enginesmith", description="Optimizes trained models and serves them.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the store, the app and workers together")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--data", type=Path)
    serve.add_argument("--workers", type=int, default=1)
    http = commands.add_parser("http", help="run the app alone")
    http.add_argument("--fd", type=int, help="an open listening socket")
    reindex = commands.add_parser("reindex", help="rebuild the index in Redis from the artifact store")
    reindex.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    chosen: dict[str, Any] = {k: v for k in ("host", "port", "data") if (v := getattr(given, k, None)) is not None}
    try:
        settings = Settings(**chosen)
    except ValueError as error:
        return _refuse(f"the settings are wrong: {error}", None)
    logging.basicConfig(stream=sys.stderr, level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        if given.command == "serve":
            from app.supervise import serve as run

            if given.workers < 0:
                return _refuse("--workers must be 0 or more", None)
            return run(settings, given.workers)
        if given.command == "http":
            return _http(settings, given.fd)
        return _reindex(settings)
    except Problem as problem:
        return _refuse(problem.detail, problem.hint)


def _http(settings: Settings, fd: int | None) -> int:
    import uvicorn

    from app.main import create_app
    from app.observe import configure_logs

    app = create_app(settings)
    configure_logs(settings.log_level, "app")

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.stopping = True  # whoever waits for a job's end or its events is answered now
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=15,
    )
    # uvicorn's own `fd` would take the socket for a unix one, and so leave Nagle's delay on.
    sockets = [socket.socket(fileno=fd)] if fd is not None else None
    Server(config).run(sockets=sockets)
    return 0


def _reindex(settings: Settings) -> int:
    from app.embedded import EmbeddedStore, answers, url_of
    from app.storage.artifacts import Artifacts
    from app.storage.catalog import Catalog
    from app.storage.registry import reindex

    url = settings.redis_url or url_of(settings.data)
    store = None if settings.redis_url or answers(url) else EmbeddedStore(settings.data)
    try:
        if store:
            store.start()
        found = reindex(Artifacts(settings.artifacts_url), Catalog.open(settings, url, patience_s=10))
    finally:
        if store:
            store.stop()
    print(json.dumps(found))  # noqa: T201
    return 0


def _refuse(detail: str, hint: str | None) -> int:
    print(f"error: {detail}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
