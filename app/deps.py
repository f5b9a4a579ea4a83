"""What routes are given: short names for the parts that the lifespan has built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from app.queue import Queue
from app.report.press import Press
from app.room import Room
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

if TYPE_CHECKING:
    from app.serving.served import Served


def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


def _artifacts(request: Request) -> Artifacts:
    return cast(Artifacts, request.app.state.artifacts)


def _catalog(request: Request) -> Catalog:
    return cast(Catalog, request.app.state.catalog)


def _room(request: Request) -> Room:
    return cast(Room, request.app.state.room)


def _queue(request: Request) -> Queue:
    return cast(Queue, request.app.state.queue)


def _press(request: Request) -> Press:
    return cast(Press, request.app.state.press)


def fleet(request: Request) -> Served:
    """The deployments that this process serves."""
    return cast("Served", request.app.state.fleet)


TheSettings = Annotated[Settings, Depends(_settings)]
TheArtifacts = Annotated[Artifacts, Depends(_artifacts)]
TheCatalog = Annotated[Catalog, Depends(_catalog)]
TheRoom = Annotated[Room, Depends(_room)]
TheQueue = Annotated[Queue, Depends(_queue)]
ThePress = Annotated[Press, Depends(_press)]
