"""`python -m app`: serve (everything), http (the app alone), engines (for several of them), reindex, backup, restore,
keys."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from app import backup_command, keys_command
from app.errors import Problem
from app.settings import Settings, chosen, unknown

log = logging.getLogger("enginesmith.serve")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="enginesmith", description="Optimizes trained models and serves them.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the store, the app and workers together")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int)
    serve.add_argument("--data", type=Path)
    serve.add_argument("--workers", type=int, default=1)
    serve.add_argument("--http-processes", type=int, default=1)
    http = commands.add_parser("http", help="run the app alone")
    http.add_argument("--fd", type=int, action="append", default=[], help="an open listening socket; several are fine")
    commands.add_parser("engines", help="run the process of the engines, for fronts started with the same settings")
    reindex = commands.add_parser("reindex", help="rebuild the index in Redis from the artifact store")
    reindex.add_argument("--data", type=Path)
    keys_command.add_to(commands)
    backup_command.add_to(commands)
    given = parser.parse_args(arguments)
    said: dict[str, Any] = {k: v for k in ("host", "port", "data") if (v := getattr(given, k, None)) is not None}
    try:
        settings = chosen(**said)
    except ValueError as error:
        return _refuse(f"the settings are wrong: {error}", None)
    logging.basicConfig(stream=sys.stderr, level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        if given.command == "serve":
            from app.observe import configure_logs
            from app.supervise import serve as run

            if given.workers < 0:
                return _refuse("--workers must be 0 or more", None)
            if not 1 <= given.http_processes <= 256:
                return _refuse("--http-processes must be between 1 and 256", None)
            configure_logs(settings.log_level, "serve")
            for line in unknown():
                log.warning(line)
            return run(settings, given.workers, given.http_processes)
        if given.command == "http":
            return _http(settings, given.fd)
        if given.command == "engines":
            return _engines(settings)
        if given.command == "keys":
            return keys_command.run(settings, given)
        if given.command in ("backup", "restore"):
            return backup_command.run(settings, given)
        return _reindex(settings)
    except Problem as problem:
        return _refuse(problem.detail, problem.hint)


def _http(settings: Settings, fds: list[int]) -> int:
    from app.http import run
    from app.main import create_app
    from app.observe import configure_logs, log_access

    app = create_app(settings)
    configure_logs(settings.log_level, "app")
    if settings.access_log:
        log_access("app")
    if settings.manage_port is not None and not fds:
        from app.supervise import listen

        places = ((settings.host, settings.port), (settings.manage_host or settings.host, settings.manage_port))
        fds = [listen(host, port, 1)[0].detach() for host, port in places]
    run(app, settings, fds)
    return 0


def _engines(settings: Settings) -> int:
    from app.engines import run
    from app.observe import configure_logs

    if settings.engines_socket is None:
        return _refuse("ENGINESMITH_ENGINES_SOCKET is not set", "enginesmith serve --http-processes N sets it")
    configure_logs(settings.log_level, "engines")
    run(settings)
    return 0


def _reindex(settings: Settings) -> int:
    from app.storage.registry import reindex

    with backup_command.opened(settings) as catalog:
        found = reindex(backup_command.filled_store(settings), catalog)
    print(json.dumps(found))  # noqa: T201
    return 0


def _refuse(detail: str, hint: str | None) -> int:
    print(f"error: {detail}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
