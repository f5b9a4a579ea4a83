"""Models: upload, list, look at, download, delete."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.body import Json, checked, parsed
from app.api.deployable import refuse_if_deployed
from app.api.examples import headers, problems, upload_body
from app.api.files import file_response
from app.api.manifest import ModelManifest, check_architecture
from app.api.paging import Cursor, Limit, page
from app.api.submitting import accepted, fingerprint, submit_once, taking
from app.api.told import lineage_json, version_json
from app.api.uploads import MultipartBody, Part, safe_filename
from app.deps import TheArtifacts, TheCatalog, TheQueue, TheSettings
from app.domain.records import Job, now
from app.domain.specs import ImportSpec
from app.errors import NotFound, Problem, Unprocessable
from app.intake import checkpoint, tars
from app.observe import UPLOADED
from app.queue import Queue
from app.room import Coming
from app.settings import Settings
from app.storage.artifacts import Artifacts, Staged
from app.storage.catalog import Catalog
from app.storage.registry import remove_version

router = APIRouter(tags=["models"])
_AT_ONCE = 1 << 20  # bytes that are handed to the store together
_UPLOADS: dict[str, Any] = {
    "a network of one's own, as data": (
        "weights.safetensors",
        {
            "name": "digits",
            "architecture": {
                "sequential": [{"type": "Flatten"}, {"type": "Linear", "in_features": 784, "out_features": 10}]
            },
            "signature": {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 1, 28, 28], "batch_axis": 0}]},
        },
    ),
    "a network of a library": (
        "resnet18.pth",
        {"name": "resnet18", "architecture": {"library": "torchvision", "name": "resnet18", "kwargs": {}}},
    ),
    "ONNX": ("model.onnx", {"name": "digits", "labels": ["0", "1"]}),
}


@router.post(
    "/v1/models",
    status_code=202,
    summary="Upload a checkpoint; a job of kind import loads it safely",
    responses=problems(400, 409, 413, 415, 422, 507),
    openapi_extra=upload_body(ModelManifest, "the checkpoint", _UPLOADS) | headers("Prefer", "Idempotency-Key"),
)
async def upload(
    request: Request, settings: TheSettings, artifacts: TheArtifacts, catalog: TheCatalog, queue: TheQueue
) -> Response:
    async with taking(request, job=True) as coming:
        job = await _take(request, coming, settings, artifacts, catalog, queue)
    return await accepted(request, catalog, job)


async def _take(
    request: Request, coming: Coming, settings: Settings, artifacts: Artifacts, catalog: Catalog, queue: Queue
) -> Job:
    manifest, staged, filename = await _receive(request, coming, settings, artifacts)
    kept = False
    coming.place = staged.key
    try:
        UPLOADED.labels("model").inc(staged.bytes)
        spec = ImportSpec(
            name=manifest.name,
            upload=staged.key,
            filename=filename,
            sha256=staged.sha256,
            bytes=staged.bytes,
            **manifest.model_dump(mode="json", exclude={"name"}),
        )

        async def make(id: str) -> Job:
            return Job(
                id=id,
                kind="import",
                spec=spec.model_dump(mode="json"),
                created_at=now(),
                allowed_attempts=settings.max_attempts,
            )

        mark = fingerprint("import", manifest.model_dump(mode="json"), staged.sha256)
        job, kept = await submit_once(request, catalog, queue, mark, make)
    finally:
        if not kept:
            await asyncio.shield(asyncio.to_thread(artifacts.delete, staged.key))
    return job


async def _receive(
    request: Request, coming: Coming, settings: Settings, artifacts: Artifacts
) -> tuple[ModelManifest, Staged, str]:
    """Both parts, in either order, the file staged and looked at. After any error nothing of it is left."""
    manifest: ModelManifest | None = None
    staged: Staged | None = None
    filename = ""
    try:
        async for part in MultipartBody(request).parts():
            if part.name == "manifest":
                text = await part.read(settings.max_json_bytes)
                manifest = checked(ModelManifest, await parsed(text, "the manifest"), "the manifest")
                if manifest.architecture is not None:
                    check_architecture(manifest.architecture)
            elif part.name == "file":
                filename = safe_filename(part.filename, "checkpoint")
                staged = await _stage(part, filename, coming, settings, artifacts)
            else:
                raise unknown_part(part)
        if staged is None:
            raise missing_part("file")
        if manifest is None:
            raise missing_part("manifest")
        await coming.whole()
    except BaseException:
        if staged is not None:
            await asyncio.shield(asyncio.to_thread(artifacts.delete, staged.key))
        raise
    return manifest, staged, filename


async def _stage(part: Part, filename: str, coming: Coming, settings: Settings, artifacts: Artifacts) -> Staged:
    found: list[checkpoint.Kind] = []

    async def looked_at() -> AsyncIterator[bytes]:
        held = bytearray()
        async for chunk in part.chunks():
            await coming.more(len(chunk))
            held += chunk
            if not found and len(held) >= checkpoint.HEAD:
                found.append(checkpoint.recognise(bytes(held[: checkpoint.HEAD])))
            if len(held) >= _AT_ONCE:
                yield bytes(held)
                held.clear()
        if not found:
            found.append(checkpoint.recognise(bytes(held)))
        if held:
            yield bytes(held)

    staged = await artifacts.stage(looked_at(), filename=filename, limit=settings.max_upload_bytes)
    try:
        await _examine(found[0], staged, settings, artifacts)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(artifacts.delete, staged.key))
        raise
    return staged


async def _examine(kind: checkpoint.Kind, staged: Staged, settings: Settings, artifacts: Artifacts) -> None:
    async def window(start: int, end: int) -> bytes:
        return b"".join([chunk async for chunk in artifacts.read(staged.key, start, min(end, staged.bytes))])

    bounds = {"max_files": settings.max_archive_files, "max_bytes": settings.max_unpacked_bytes}
    if kind in ("tar", "packed_tar"):
        pulled = _Pulled(artifacts.read(staged.key), asyncio.get_running_loop())
        try:
            await asyncio.to_thread(tars.examine, pulled, archive_bytes=staged.bytes, **bounds)
        finally:
            pulled.close()
    else:
        await checkpoint.examine(kind, staged.bytes, window, **bounds)


class _Pulled(io.RawIOBase):
    """An asynchronous stream as a file for a thread."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks, self._loop = chunks, loop
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            return 0
        if not self._held:
            self._held = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        n = min(len(buffer), len(self._held))
        buffer[:n] = self._held[:n]
        self._held = self._held[n:]
        return n

    async def _next(self) -> bytes:
        return await anext(self._chunks, b"")


def unknown_part(part: Part) -> Problem:
    return Unprocessable(
        f"there is no part {part.name[:100]!r}", code="unknown_part", hint="the parts are `file` and `manifest`"
    )


def missing_part(name: str) -> Problem:
    return Unprocessable(
        f"the part {name!r} is missing",
        code="missing_part",
        hint='curl -F file=@model.onnx -F \'manifest={"name": "digits"}\'',
        errors=[{"loc": [name], "msg": "is required"}],
    )


@router.get("/v1/models", summary="Every model", responses=problems(422))
def list_models(catalog: TheCatalog, limit: Limit = 50, cursor: Cursor = None) -> Response:
    names, following = catalog.models(limit=limit, cursor=cursor)
    found = []
    for name in names:
        with contextlib.suppress(NotFound):  # deleted a moment ago
            found.append(_model_json(catalog, name))
    return page(found, following)


@router.get("/v1/models/{name}", summary="A model with its versions", responses=problems(404))
def get_model(name: str, catalog: TheCatalog) -> Response:
    return Json(_model_json(catalog, name))


def _model_json(catalog: Catalog, name: str) -> dict[str, Any]:
    versions = catalog.versions(name)
    return {
        "name": name,
        "newest": versions[-1].ref,
        "versions": [version_json(v, catalog.evaluations(v.ref)) for v in versions],
        "created_at": versions[0].created_at,
        "updated_at": versions[-1].created_at,
    }


@router.get("/v1/models/{name}/lineage", summary="From upload to engines, as a tree", responses=problems(404))
def get_lineage(name: str, catalog: TheCatalog) -> Response:
    return Json({"name": name, "tree": lineage_json(catalog.versions(name))})


@router.get("/v1/models/{name}/versions/{version}", summary="One version", responses=problems(404, 422))
def get_version(name: str, version: int, catalog: TheCatalog) -> Response:
    found = catalog.version(name, version)
    return Json(version_json(found, catalog.evaluations(found.ref)))


@router.delete(
    "/v1/models/{name}/versions/{version}",
    status_code=204,
    summary="Delete a version and its files",
    responses=problems(404, 409),
)
def delete_version(name: str, version: int, catalog: TheCatalog, artifacts: TheArtifacts) -> Response:
    ref = catalog.version(name, version).ref
    refuse_if_deployed(catalog, ref)
    remove_version(artifacts, catalog, name, version)
    return Response(status_code=204)


@router.get(
    "/v1/models/{name}/versions/{version}/files/{path:path}",
    summary="Download a file of a version; ranges work",
    response_class=Response,
    responses={
        200: {"description": "the file", "content": {"application/octet-stream": {}}},
        206: {"description": "the range asked for", "content": {"application/octet-stream": {}}},
        **problems(404, 416),
    },
    openapi_extra=headers("Range"),
)
async def download(
    name: str, version: int, path: str, request: Request, catalog: TheCatalog, artifacts: TheArtifacts
) -> Response:
    found = await asyncio.to_thread(catalog.version, name, version)
    if path not in found.files:
        raise NotFound(
            f"{found.ref} has no file {path!r}",
            code="file_not_found",
            hint=f"it has: {', '.join(sorted(found.files)[:20])}",
        )
    return await file_response(request, artifacts, f"{found.folder}/{path}", found.files[path])


@router.head(
    "/v1/models/{name}/versions/{version}/files/{path:path}",
    summary="The same without its bytes",
    response_class=Response,
    responses=problems(404),
)
async def look_at_file(
    name: str, version: int, path: str, request: Request, catalog: TheCatalog, artifacts: TheArtifacts
) -> Response:
    return await download(name, version, path, request, catalog, artifacts)
