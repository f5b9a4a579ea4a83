"""Records as the API tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.domain.records import Dataset, Job, Version, parse_ref

ARCHITECTURE = "architecture.json"
_JOB_FIELDS = (
    "id", "kind", "spec", "model", "dataset", "status", "phase", "progress", "metrics", "history", "result", "error",
    "cache_hit", "warnings", "key", "parent", "attempt", "created_at", "started_at", "finished_at",
)  # fmt: skip


def version_json(version: Version, evaluations: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A version; where its files lie in the store is nobody's business."""
    record = version.model_dump(mode="json", exclude={"folder"})
    at = f"/v1/models/{version.name}"
    links = {"self": f"{at}/versions/{version.version}", "recipe": f"{at}/versions/{version.version}/recipe"}
    return {
        "ref": version.ref,
        **record,
        "architecture": architecture_of(version),
        "evaluations": list(evaluations),
        "links": links | {"lineage": f"{at}/lineage"},
    }


def architecture_of(version: Version) -> str | None:
    """What two checkpoints of the same network have in common: the sha256 of their architecture as data, or of an ONNX
    graph without its weights where the import has noted it."""
    found = version.files.get(ARCHITECTURE) or version.details.get("architecture")
    return found if isinstance(found, str) else None


def dataset_json(dataset: Dataset) -> dict[str, Any]:
    record = dataset.model_dump(mode="json", exclude={"folder"})
    return {"ref": dataset.ref, **record, "rows": {name: split.rows for name, split in dataset.splits.items()}}


def job_json(job: Job) -> dict[str, Any]:
    record = job.model_dump(mode="json")
    at = f"/v1/jobs/{job.id}"
    links = {name: at if name == "self" else f"{at}/{name}" for name in ("self", "events", "report", "cancel", "retry")}
    if job.parent:
        links["parent"] = f"/v1/jobs/{job.parent}"
    if job.kind in ("search", "optimize"):
        links["trials"] = f"/v1/jobs?parent={job.id}"
    made = (job.result.model if job.result else None) or job.model
    if made:
        name, number = parse_ref(made)
        links["model"] = f"/v1/models/{name}/versions/{number}" if number else f"/v1/models/{name}"
    return {name: record[name] for name in _JOB_FIELDS} | {"queue": job.queue, "links": links}


def lineage_json(versions: Sequence[Version]) -> list[dict[str, Any]]:
    """The versions of a model as trees: each under the one that it was made from, if that is still there."""
    nodes = {v.ref: _node(v) for v in versions}
    roots: list[dict[str, Any]] = []
    for version in versions:
        parent = nodes.get(version.parent or "")
        (parent["children"] if parent is not None else roots).append(nodes[version.ref])
    return roots


def _node(version: Version) -> dict[str, Any]:
    metrics = version.metrics
    return {
        "ref": version.ref,
        "version": version.version,
        "format": version.format,
        "kind": version.made_by.spec.get("kind"),
        "job": version.made_by.job,
        "parent": version.parent,
        "parameters": version.parameters,
        "macs": version.macs,
        "sparsity": version.sparsity,
        "bytes": version.bytes,
        "precision": version.details.get("precision"),
        "quality": metrics.quality.model_dump(mode="json") if metrics.quality else None,
        "latency": [
            {"runtime": at.runtime, "batch": at.batch, "p50_ms": at.p50_ms, "device": at.device}
            for at in metrics.latency
        ],
        "verdict": version.verdict,
        "created_at": version.created_at,
        "children": [],
    }
