"""Data sets: upload and validate, list, look at, delete."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import caller
from app.api.body import Json, checked, parsed
from app.api.examples import headers, problems, upload_body
from app.api.files import file_response
from app.api.models import missing_part, unknown_part
from app.api.paging import Cursor, Limit, page
from app.api.submitting import taking
from app.api.told import dataset_json
from app.api.uploads import MultipartBody, Part
from app.deps import TheArtifacts, TheCatalog, TheSettings
from app.domain.records import Dataset, now
from app.errors import BadDataset, NotFound, TooLarge
from app.intake.child import read_dataset
from app.intake.manifest import DatasetManifest
from app.observe import UPLOADED
from app.room import Coming
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.storage.registry import publish_dataset, put_files, remove_dataset

router = APIRouter(tags=["datasets"])
_UPLOADS: dict[str, Any] = {
    "arrays": ("digits.npz", {"name": "digits", "kind": "arrays"}),
    "images": (
        "flowers.zip",
        {
            "name": "flowers",
            "kind": "images",
            "preprocess": {"resize": [224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        },
    ),
    "table": ("wine.csv", {"name": "wine", "kind": "table", "target": "class"}),
}


@router.post(
    "/v1/datasets",
    status_code=201,
    summary="Upload a data set; answered once it is validated",
    responses=problems(400, 413, 415, 422, 507),
    openapi_extra=upload_body(DatasetManifest, "a .npz, a zip of images, a csv or a parquet file", _UPLOADS),
)
async def upload(request: Request, settings: TheSettings, artifacts: TheArtifacts, catalog: TheCatalog) -> Response:
    async with taking(request, job=False) as coming:
        dataset = await _take(request, coming, settings, artifacts, catalog)
    headers = {"Location": f"/v1/datasets/{dataset.name}/versions/{dataset.version}"}
    return Json(dataset_json(dataset), status_code=201, headers=headers)


async def _take(
    request: Request, coming: Coming, settings: Settings, artifacts: Artifacts, catalog: Catalog
) -> Dataset:
    await asyncio.to_thread(settings.scratch.mkdir, parents=True, exist_ok=True)
    scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="dataset-", dir=settings.scratch))
    try:
        manifest, file = await _receive(request, coming, settings, scratch)
        holder = caller(request.scope)
        draft = await read_dataset(settings, manifest, file, scratch) | {"key": holder.owner if holder else None}
        file.unlink()
        await coming.whole(await asyncio.to_thread(_bytes_below, scratch / "data"))
        coming.place = f"datasets/{manifest.name}/files/{uuid.uuid4().hex}"
        publishing = asyncio.to_thread(
            _publish, artifacts, catalog, manifest.name, draft, scratch / "data", coming.place
        )
        return await asyncio.shield(asyncio.ensure_future(publishing))
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True))


async def _receive(request: Request, coming: Coming, settings: Settings, scratch: Path) -> tuple[DatasetManifest, Path]:
    """Both parts, in either order; the file on disk."""
    manifest: DatasetManifest | None = None
    file: Path | None = None
    async for part in MultipartBody(request).parts():
        if part.name == "manifest":
            text = await part.read(settings.max_json_bytes)
            manifest = checked(DatasetManifest, await parsed(text, "the manifest"), "the manifest")
        elif part.name == "file":
            file = scratch / "upload"
            size = await _save(part, file, coming, settings.max_upload_bytes)
            UPLOADED.labels("dataset").inc(size)
        else:
            raise unknown_part(part)
    if file is None:
        raise missing_part("file")
    if manifest is None:
        raise missing_part("manifest")
    return manifest, file


async def _save(part: Part, to: Path, coming: Coming, most: int) -> int:
    size = 0
    with to.open("wb") as file:
        held = bytearray()
        async for chunk in part.chunks():
            size += len(chunk)
            await coming.more(len(chunk))
            if size > most:
                raise TooLarge(f"the upload is larger than {most} bytes", hint="raise ENGINESMITH_MAX_UPLOAD_BYTES")
            held += chunk
            if len(held) >= 1 << 20:
                await asyncio.to_thread(file.write, held)
                held = bytearray()
        await asyncio.to_thread(file.write, held)
    if not size:
        raise BadDataset("the file is empty", code="empty_file", hint="upload it again")
    return size


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _publish(
    artifacts: Artifacts, catalog: Catalog, name: str, draft: dict[str, Any], folder: Path, prefix: str
) -> Dataset:
    try:
        files, size = put_files(artifacts, folder, prefix)
        record = {"name": name, "version": 1, "folder": prefix, "files": files, "bytes": size, "created_at": now()}
        made = Dataset.model_validate(draft | record)  # the draft is the word of whoever may have taken the reader over
        if {place for split in made.splits.values() for place in split.places} - set(files):
            raise BadDataset("reading it told of files that are not there")
        return publish_dataset(artifacts, catalog, made)
    except BaseException:
        artifacts.delete_all(prefix)
        raise


@router.get("/v1/datasets", summary="Every data set", responses=problems(422))
def list_datasets(catalog: TheCatalog, limit: Limit = 50, cursor: Cursor = None) -> Response:
    names, following = catalog.datasets(limit=limit, cursor=cursor)
    return page([_all_json(catalog, name) for name in names], following)


@router.get("/v1/datasets/{name}", summary="A data set: its newest version, and all", responses=problems(404))
def get_dataset(name: str, catalog: TheCatalog) -> Response:
    return Json(_all_json(catalog, name))


def _all_json(catalog: Catalog, name: str) -> dict[str, Any]:
    versions = [dataset_json(d) for d in catalog.dataset_versions(name)]
    return versions[-1] | {"versions": versions}


@router.get("/v1/datasets/{name}/versions/{version}", summary="One version", responses=problems(404, 422))
def get_version(name: str, version: int, catalog: TheCatalog) -> Response:
    return Json(dataset_json(catalog.dataset(name, version)))


@router.get(
    "/v1/datasets/{name}/versions/{version}/files/{path:path}",
    summary="Download a file of a data set; ranges work",
    description="Arrays in NumPy's .npy. `splits` of the data set names them: of each split x and y, and in `index` "
    "the numbers of its rows in those, where the split was cut off and not uploaded.",
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
    found = await asyncio.to_thread(catalog.dataset, name, version)
    if path not in found.files:
        raise NotFound(
            f"{found.ref} has no file {path[:200]!r}",
            code="file_not_found",
            hint=f"it has: {', '.join(sorted(found.files)[:20])}",
        )
    return await file_response(request, artifacts, f"{found.folder}/{path}", found.files[path])


@router.head(
    "/v1/datasets/{name}/versions/{version}/files/{path:path}",
    summary="The same without its bytes",
    response_class=Response,
    responses=problems(404),
)
async def look_at_file(
    name: str, version: int, path: str, request: Request, catalog: TheCatalog, artifacts: TheArtifacts
) -> Response:
    return await download(name, version, path, request, catalog, artifacts)


@router.delete("/v1/datasets/{name}", status_code=204, summary="Delete every version", responses=problems(404))
def delete_dataset(name: str, catalog: TheCatalog, artifacts: TheArtifacts) -> Response:
    remove_dataset(artifacts, catalog, name, None)
    return Response(status_code=204)


@router.delete(
    "/v1/datasets/{name}/versions/{version}", status_code=204, summary="Delete one version", responses=problems(404)
)
def delete_version(name: str, version: int, catalog: TheCatalog, artifacts: TheArtifacts) -> Response:
    remove_dataset(artifacts, catalog, name, version)
    return Response(status_code=204)
