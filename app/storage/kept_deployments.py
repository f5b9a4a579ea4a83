"""Deployments beside the models in the artifact store, so that a Redis that lost everything learns what was served.

Redis says what is wanted; what lies here follows it. A file goes when its deployment is deleted, and never because
Redis does not know it: that is what the file is for."""

from __future__ import annotations

import logging
from contextlib import suppress

from app.domain.deployments import Deployment
from app.errors import NotFound, Problem
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog, Stale

log = logging.getLogger("enginesmith.deployments")
_FOLDER = "deployments"


def keep_deployment(artifacts: Artifacts, deployment: Deployment) -> bool:
    """Whether it could be written; where not, `Mirror` tries again."""
    try:
        artifacts.put_bytes(deployment.model_dump_json(exclude_none=True).encode(), _place(deployment.name))
    except Problem as problem:
        log.warning("deployment %s is not in the artifact store yet: %s", deployment.name, problem.detail)
        return False
    return True


def forget_deployment(artifacts: Artifacts, name: str) -> None:
    """Before it is taken out of Redis: what lies here would come back. Raises Unavailable."""
    artifacts.delete(_place(name))


def restore_deployments(artifacts: Artifacts, catalog: Catalog) -> int:
    """Puts those into Redis that it does not know; how many."""
    found = 0
    for key in artifacts.keys(_FOLDER):
        try:
            deployment = Deployment.model_validate_json(artifacts.get_bytes(key))
        except NotFound:
            continue
        except ValueError:
            log.error("%s is damaged, and that deployment is not restored: PUT it again", key)
            continue
        with suppress(Stale):
            catalog.put_deployment(deployment, was_generation=None)
            found += 1
    return found


class Mirror:
    """Writes what has changed in Redis since the last look: a canary that was taken back, what could not be written."""

    def __init__(self, artifacts: Artifacts, catalog: Catalog) -> None:
        self._artifacts, self._catalog = artifacts, catalog
        self._kept: dict[str, tuple[str, int]] = {}

    def look(self) -> None:
        """Raises Unavailable."""
        wanted = {of.name: of for of in self._catalog.deployments()}
        self._kept = {name: mark for name, mark in self._kept.items() if name in wanted}
        for name, of in wanted.items():
            mark = (of.created_at, of.generation)
            if self._kept.get(name) != mark and keep_deployment(self._artifacts, of):
                self._kept[name] = mark
                self._deleted_meanwhile(name)

    def _deleted_meanwhile(self, name: str) -> None:
        try:
            self._catalog.deployment(name)
        except NotFound:
            if self._catalog.remembers():
                forget_deployment(self._artifacts, name)


def _place(name: str) -> str:
    return f"{_FOLDER}/{name}.json"
