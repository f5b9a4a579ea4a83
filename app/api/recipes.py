"""How a version was made: the specs from the upload to it, ready to be done again to another checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.api.body import Json
from app.api.examples import problems
from app.api.told import architecture_of
from app.deps import TheCatalog
from app.domain.records import Version, parse_ref
from app.errors import NotFound
from app.storage.catalog import Catalog

router = APIRouter(tags=["models"])
_LONGEST = 1000  # versions in a chain

RECIPE: dict[str, Any] = {
    "type": "object",
    "title": "Recipe",
    "required": ["model", "root", "architecture", "chain", "made", "complete", "missing"],
    "properties": {
        "model": {"type": "string", "description": "the version that it makes"},
        "root": {"type": "string", "description": "the version that the chain starts from"},
        "architecture": {
            "type": ["string", "null"],
            "description": "sha256 of the root's architecture; null where its format has none apart from its weights",
        },
        "chain": {"type": "array", "items": {"type": "object"}, "description": "specs without `model`, in their order"},
        "made": {
            "type": "array",
            "items": {"type": ["string", "null"]},
            "description": "the version that each spec of the chain made; null for steps in between that made none",
        },
        "complete": {"type": "boolean", "description": "false where a version on the way was deleted"},
        "missing": {"type": ["string", "null"], "description": "the deleted version that the chain starts after"},
    },
}
_EXAMPLE = {
    "model": "digits@4",
    "root": "digits@1",
    "architecture": "9f2c0d7a51b8e3f46a0c9d1e7b25384f6c1a0e9d8b7f6a5c4d3e2f1a0b9c8d7e",
    "chain": [
        {"kind": "train", "dataset": "digits@1", "epochs": 30, "lr": 0.05},
        {"kind": "prune", "dataset": "digits@1", "method": "channel", "amount": 0.5, "finetune": {"epochs": 5}},
        {"kind": "convert", "dataset": "digits@1", "target": "openvino"},
    ],
    "made": ["digits@2", "digits@3", "digits@4"],
    "complete": True,
    "missing": None,
}


@router.get(
    "/v1/models/{name}/versions/{version}/recipe",
    summary="The chain of specs that made a version",
    description="Submitted one after the other, each on what the one before made, they do the same to another "
    "checkpoint of the same architecture: `enginesmith replay`.",
    responses={
        200: {
            "description": "the recipe",
            "content": {"application/json": {"schema": RECIPE, "example": _EXAMPLE}},
        },
        **problems(404, 422),
    },
)
def get_recipe(name: str, version: int, catalog: TheCatalog) -> Response:
    return Json(recipe(catalog.version(name, version), catalog))


def recipe(version: Version, catalog: Catalog) -> dict[str, Any]:
    """From the version back to the import, or to where its ancestors were deleted."""
    chain: list[dict[str, Any]] = []
    made: list[str | None] = []
    at, missing = version, None
    while len(chain) < _LONGEST and at.made_by.spec.get("kind") != "import":
        steps = _steps(at, catalog)
        chain[:0] = steps
        made[:0] = [None] * (len(steps) - 1) + [at.ref]
        if at.parent is None:
            break
        try:
            at = _version(at.parent, catalog)
        except NotFound:
            missing = at.parent
            break
    return {
        "model": version.ref,
        "root": missing or at.ref,
        "architecture": None if missing else architecture_of(at),
        "chain": chain,
        "made": made,
        "complete": missing is None,
        "missing": missing,
    }


def _steps(version: Version, catalog: Catalog) -> list[dict[str, Any]]:
    """What made a version of its parent: one spec, or those that a search or an optimize job found."""
    found = version.details.get("recipe")
    if isinstance(found, list) and found and all(isinstance(spec, Mapping) for spec in found):
        return [_step(spec, None) for spec in found]
    return [_step(version.made_by.spec, _dataset_of(version, catalog))]


def _step(spec: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    kept = {k: v for k, v in spec.items() if k != "model" and v is not None}
    return kept | ({"dataset": dataset} if dataset and "dataset" in kept else {})


def _dataset_of(version: Version, catalog: Catalog) -> str | None:
    """The very data set that a job named bare: its record knows it, and so do the figures measured on it."""
    asked = version.made_by.spec.get("dataset")
    if not asked or "@" in asked:
        return None
    quality = version.metrics.quality
    try:
        found = catalog.job(version.made_by.job).dataset
    except NotFound:
        found = quality.dataset if quality else None
    return found if found and found.partition("@")[0] == asked else None


def _version(ref: str, catalog: Catalog) -> Version:
    name, number = parse_ref(ref)
    if number is None:
        raise NotFound(f"{ref} names no version")
    return catalog.version(name, number)
