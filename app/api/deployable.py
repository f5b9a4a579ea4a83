"""Which version a deployment may name, and why another may not be deployed."""

from __future__ import annotations

from app import runtimes
from app.api.wanted import Wanted
from app.domain.deployments import Deployment
from app.domain.records import Version, parse_ref
from app.errors import Conflict, NotFound, Unprocessable
from app.serving.lane import default_max_batch, has_fixed_rows
from app.storage.catalog import Catalog

_DOUBTED = ("rejected", "unproven")


def refuse_if_deployed(catalog: Catalog, ref: str) -> None:
    """Raises Conflict for a version that a deployment needs: it wants it, or some replica has it loaded."""
    for deployment in catalog.deployments():
        if ref in _needed(catalog, deployment):
            raise Conflict(
                f"{ref} is deployed as {deployment.name!r}",
                code="deployed",
                hint=f"deploy another version, or DELETE /v1/deployments/{deployment.name} first",
            )


def _needed(catalog: Catalog, deployment: Deployment) -> set[str]:
    """What it wants; what was ready last, which serves until what is wanted is ready; and what any replica has."""
    last = catalog.last_ready(deployment.name)
    own = [last.model] if last is not None and last.made == deployment.created_at else []
    there = [ref for report in catalog.replicas(deployment.name) for ref in report.get("versions", ())]
    return {*deployment.refs, *own, *there}


def deployable(catalog: Catalog, ref: str, asked: Wanted) -> Version:
    """The version that a reference means. Raises NotFound; Conflict for one that cannot be deployed."""
    name, number = parse_ref(ref)
    if number is not None:
        version = catalog.version(name, number)
        _refuse(catalog, version, asked)
        return version
    newest_first = list(reversed(catalog.versions(name)))
    engines = [v for v in newest_first if v.is_engine]
    if not engines:
        raise _no_engine(newest_first[0])
    first_refusal: Conflict | Unprocessable | None = None
    for version in engines:
        try:
            _refuse(catalog, version, asked)
        except (Conflict, Unprocessable) as error:
            first_refusal = first_refusal or error
        else:
            return version
    assert first_refusal is not None
    raise first_refusal


def _refuse(catalog: Catalog, version: Version, asked: Wanted) -> None:
    """Raises Conflict or Unprocessable when this version cannot be deployed as asked."""
    if not version.is_engine:
        raise _no_engine(version)
    found = runtimes.get(version.format).available()
    if not found.ok:
        raise Conflict(
            f"{version.ref} is an engine of {version.format}, which cannot run here: {found.reason}",
            code="runtime_unavailable",
            hint="convert for another target, or deploy where that runtime is available",
        )
    built_for = default_max_batch(version)
    if has_fixed_rows(version) and asked.max_batch is not None and asked.max_batch > built_for:
        raise Unprocessable(
            f"{version.ref} was built for at most {built_for} rows, and max_batch is {asked.max_batch}",
            hint="deploy with a smaller max_batch, or convert with a larger one",
        )
    verdicts = [e["verdict"] for e in catalog.evaluations(version.ref) if e.get("verdict")] or [version.verdict]
    if not asked.force and (doubts := [v for v in verdicts if v in _DOUBTED]):
        raise Conflict(
            f"{version.ref} was judged {doubts[0]}: it did not meet the bounds set for it",
            code=f"version_{doubts[0]}",
            hint='look at its metrics; deploy it all the same with "force": true',
        )


def _no_engine(version: Version) -> Conflict:
    return Conflict(
        f"{version.ref} is no engine: its format is {version.format}",
        code="not_an_engine",
        hint=f'convert it first: POST /v1/jobs {{"kind": "convert", "model": "{version.ref}", "target": "openvino"}}',
    )


def exact(ref: str) -> tuple[str, int]:
    name, number = parse_ref(ref)
    if number is None:
        raise NotFound(f"{ref!r} names no exact version")
    return name, number
