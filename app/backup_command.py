"""`enginesmith backup` and `restore`: what Redis holds and the artifact store does not, to a file and back."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.embedded import EmbeddedStore, answers, url_of
from app.errors import NotFound
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.backup import backup, restore, write
from app.storage.catalog import Catalog
from app.storage.registry import reindex

_PATIENCE_S = 10.0


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, told in (
        ("backup", "write what Redis alone holds into a file"),
        ("restore", "read such a file, and rebuild the index from the artifact store"),
    ):
        command = commands.add_parser(name, help=told)
        command.add_argument("file", type=Path, help="or -, for what comes and goes through a pipe")
        command.add_argument("--data", type=Path)
        if name == "restore":
            command.add_argument("--replace", action="store_true", help="forget the jobs that Redis holds")


def run(settings: Settings, given: argparse.Namespace) -> int:
    """Raises Problem."""
    with opened(settings) as catalog, contextlib.ExitStack() as until_done:
        if given.command == "backup":
            if str(given.file) == "-":
                told = {"keys": write(catalog, sys.stdout.buffer)}
                sys.stderr.write(json.dumps(told) + "\n")
                return 0
            if not given.file.absolute().parent.is_dir():
                raise NotFound(f"there is no folder {given.file.absolute().parent}")
            told = {"keys": backup(catalog, given.file), "bytes": given.file.stat().st_size}
        else:
            artifacts = filled_store(settings)
            source = given.file
            if str(source) == "-":  # all of it is read before anything is written
                spool = until_done.enter_context(tempfile.NamedTemporaryFile())
                shutil.copyfileobj(sys.stdin.buffer, spool)
                spool.flush()
                source = Path(spool.name)
            told = {"keys": restore(catalog, source, replace=given.replace)} | reindex(artifacts, catalog)
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


def filled_store(settings: Settings) -> Artifacts:
    """Raises NotFound for a store that has nothing: told of it, a service would unload all that it serves."""
    artifacts = Artifacts(settings.artifacts_url, patience_s=_PATIENCE_S)
    if not any(artifacts.folders(folder) for folder in ("models", "datasets")):
        raise NotFound(
            f"there is nothing in the store {settings.artifacts_url}",
            code="empty_store",
            hint="is it the one that the service uses? --data or ENGINESMITH_STORE_URL says which",
        )
    return artifacts


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Catalog]:
    """The catalog of a service that runs, or of a data folder whose service does not: its store runs meanwhile."""
    url = settings.redis_url or url_of(settings.data)
    store = None if settings.redis_url or answers(url) else EmbeddedStore(settings.data)
    try:
        if store:
            store.start()
        yield Catalog.open(settings, url, patience_s=_PATIENCE_S)
    finally:
        if store:
            store.stop()
