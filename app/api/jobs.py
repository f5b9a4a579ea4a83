"""Jobs: submit, list, look at, cancel, retry."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.auth import caller
from app.api.body import Json, checked_by, read_json
from app.api.examples import headers, json_body, problems
from app.api.job_examples import EXAMPLES
from app.api.job_schema import listed, shown
from app.api.paging import Cursor, Limit, page
from app.api.resolving import resolve
from app.api.submitting import accepted, fingerprint, new_job_id, submit_once
from app.api.told import job_json
from app.api.waiting import applied, ended_or, idempotency_key, other_request, preferred_wait
from app.deps import TheArtifacts, TheCatalog, TheQueue, TheSettings
from app.domain.keys import Key
from app.domain.records import Job, Status, now, parse_ref
from app.domain.specs import MENU, NOT_SUBMITTED, SUBMITTABLE, Spec
from app.errors import Conflict, NotFound, Unprocessable
from app.queue import Queue
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog, Stale
from app.trials import WAITING_KINDS, stop_trials, tell_parent, try_again

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/jobs",
    status_code=202,
    summary="Submit a job",
    responses={202: shown("the job, queued"), **problems(400, 404, 409, 415, 422)},
    openapi_extra=json_body(SUBMITTABLE, EXAMPLES) | headers("Prefer", "Idempotency-Key"),
)
async def submit(request: Request, settings: TheSettings, catalog: TheCatalog, queue: TheQueue) -> Response:
    body = await read_json(request)
    spec = parse_submission(body)

    async def make(id: str) -> Job:
        found = await asyncio.to_thread(resolve, spec, catalog)
        return Job.model_validate(
            {
                "id": id,
                "kind": body["kind"],
                "spec": found.spec,
                "model": found.model,
                "dataset": found.dataset,
                "queue": found.queue,
                "warnings": found.warnings,
                "created_at": now(),
                "allowed_attempts": settings.max_attempts,
            }
        )

    job, _ = await submit_once(request, catalog, queue, fingerprint("job", body), make)
    return await accepted(request, catalog, job)


def parse_submission(body: Any) -> Spec:
    """The typed spec. Raises Unprocessable that names the kinds, or the fields that are wrong."""
    kinds = [kind for kind in MENU if kind not in NOT_SUBMITTED]
    if isinstance(body, dict):
        kind = body.get("kind")
        if isinstance(kind, str) and kind in NOT_SUBMITTED:
            raise Unprocessable(f"jobs of kind {kind!r} are made by {NOT_SUBMITTED[kind]}", code="unknown_kind")
        if not isinstance(kind, str) or kind not in kinds:
            told = f"unknown kind {repr(kind)[:80]}" if "kind" in body else "there is no `kind`"
            raise Unprocessable(
                told,
                code="unknown_kind",
                hint=f"kinds are: {', '.join(kinds)}",
                errors=[{"loc": ["kind"], "msg": f"must be one of {', '.join(kinds)}"}],
            )
    found: Spec = checked_by(SUBMITTABLE, body, "the job")
    return found


@router.get(
    "/v1/jobs",
    summary="Jobs, newest first",
    description="Trials are left out unless `parent` or `kind=trial` asks for them.",
    responses={200: listed("a page of them"), **problems(422)},
)
def list_jobs(
    catalog: TheCatalog,
    kind: Annotated[str | None, Query(max_length=50)] = None,
    status: Status | None = None,
    model: Annotated[str | None, Query(max_length=80, description="a name, or name@number")] = None,
    parent: Annotated[str | None, Query(max_length=100, description="the search or optimize job whose trials")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    if kind is not None and kind not in MENU:
        raise Unprocessable(
            f"unknown kind {kind!r}", code="unknown_kind", hint=f"kinds are: {', '.join(MENU)}",
            errors=[{"loc": ["query", "kind"], "msg": f"must be one of {', '.join(MENU)}"}],
        )  # fmt: skip
    found, following = catalog.jobs(kind=kind, status=status, model=model, parent=parent, limit=limit, cursor=cursor)
    return page([job_json(job) for job in found], following)


@router.get(
    "/v1/jobs/{id}",
    summary="One job; waits for its end if asked to",
    responses={200: shown("the job"), **problems(404)},
    openapi_extra=headers("Prefer"),
)
async def get_job(id: str, request: Request, catalog: TheCatalog) -> Response:
    seconds = preferred_wait(request.headers)
    job = await ended_or(catalog, id, seconds, request)
    return Json(job_json(job), headers=applied(seconds))


@router.post(
    "/v1/jobs/{id}/cancel",
    summary="Stop a job within seconds",
    description="A search or optimize job takes its trials along. A trial that is cancelled counts as failed.",
    responses={
        200: shown("it was waiting, and is cancelled"),
        202: shown("it was running, and is being stopped"),
        **problems(404, 409),
    },
)
def cancel(id: str, catalog: TheCatalog, queue: TheQueue, artifacts: TheArtifacts, settings: TheSettings) -> Response:
    for _ in range(5):
        job = catalog.job(id)
        if job.ended:
            raise Conflict(
                f"job {id} has {job.status} already", code="already_ended", hint="there is nothing left to cancel"
            )
        try:
            if job.status == "queued" or job.waiting or job.due:  # no process has it
                job = catalog.moved(id, was={job.status}, to="cancelled", attempt=job.attempt)
                queue.cancel(job)
                if job.kind == "import":  # a running one clears up after itself
                    artifacts.delete(str(job.spec["upload"]))
            elif job.status == "running":
                job = catalog.moved(id, was={"running"}, to="cancelling", attempt=job.attempt)
                if job.waiting:  # its step has just ended
                    job = catalog.moved(id, was={"cancelling"}, to="cancelled", attempt=job.attempt)
        except Stale:  # it moved between our look and our word: look again
            continue
        if job.kind in WAITING_KINDS:
            stop_trials(catalog, queue, id)
        if job.ended:
            tell_parent(catalog, queue, job, settings.max_attempts)
        return Json(job_json(job), status_code=200 if job.ended else 202)
    raise Conflict(f"job {id} changes too fast to be cancelled", retryable=True, hint="try again")


@router.post(
    "/v1/jobs/{id}/retry",
    status_code=202,
    summary="Run a failed or cancelled job again",
    description="The same job, queued again with its next attempt; training goes on from its last checkpoint. From "
    "now on it counts for the key that asks.",
    responses={202: shown("the job, queued again"), **problems(404, 409, 507)},
    openapi_extra=headers("Prefer", "Idempotency-Key"),
)
async def retry(
    id: str,
    request: Request,
    settings: TheSettings,
    catalog: TheCatalog,
    queue: TheQueue,
    artifacts: TheArtifacts,
) -> Response:
    key = idempotency_key(request)
    mark, token = fingerprint("retry", id), new_job_id()
    if key is not None:
        stood, first = await asyncio.to_thread(catalog.remember, f"retry:{key}", mark, token)
        if stood != mark:
            raise other_request()
        if first != token:  # its answer was lost on the way
            return await accepted(request, catalog, await asyncio.to_thread(catalog.job, id))
    try:
        holder = caller(request.scope)
        await asyncio.to_thread(request.app.state.room.check, 0, holder, job=False)
        job = await asyncio.to_thread(_retry, id, settings.max_attempts, holder, catalog, queue, artifacts)
    except BaseException:
        if key is not None:
            await asyncio.shield(asyncio.to_thread(catalog.forget, f"retry:{key}"))
        raise
    return await accepted(request, catalog, job)


def _retry(id: str, attempts: int, key: Key | None, catalog: Catalog, queue: Queue, artifacts: Artifacts) -> Job:
    job = catalog.job(id)
    if job.parent:
        raise Conflict(
            f"job {id} is a trial of job {job.parent}, which says what is tried",
            code="is_a_trial",
            hint=f"POST /v1/jobs/{job.parent}/retry goes on with the trials that it has",
        )
    if job.status not in ("failed", "cancelled"):
        raise Conflict(
            f"job {id} is {job.status}; only failed and cancelled jobs can be run again",
            code="not_ended" if not job.ended else "already_succeeded",
            hint="submit a new job with the same fields" if job.ended else "cancel it first",
        )
    _check_sources(job, catalog, artifacts)
    try_again(catalog, job)
    queued = catalog.again(job, attempts, key)
    queue.enqueue(queued)
    return queued


def _check_sources(job: Job, catalog: Catalog, artifacts: Artifacts) -> None:
    """Whether what the job works on is still there. Raises Conflict."""
    if job.kind == "import":
        try:
            artifacts.size(str(job.spec.get("upload")))
        except NotFound:
            raise Conflict(
                "the uploaded file is gone", code="upload_gone", hint="upload it again: POST /v1/models"
            ) from None
    for ref, what in ((job.model, "model"), (job.dataset, "dataset")):
        if ref is None:
            continue
        name, number = parse_ref(ref)
        try:
            if what == "dataset":
                catalog.dataset(name, number)
            elif number is not None:
                catalog.version(name, number)
        except NotFound:
            raise Conflict(f"{ref}, which the job works on, was deleted", code="source_gone") from None
