"""One job from start to finish, in a process of its own. Importing this file imports no torch."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import traceback
from contextlib import AbstractContextManager
from typing import Any

from app import tracing
from app.domain import specs
from app.domain.records import Job, Made, Result, Version, now
from app.errors import InsufficientStorage, Internal, NotFound, Problem
from app.queue import Queue
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog, Fenced, Stale
from app.storage.registry import find_version, publish_version, put_files
from workers.context import Context
from workers.lease import Cancelled, Lease, block_sigterm
from workers.report import Report

log = logging.getLogger("enginesmith.run")


def run(id: str, attempt: int) -> None:
    """What RQ calls. The outcome is in the catalog; RQ learns nothing."""
    block_sigterm()
    settings = Settings()
    logging.basicConfig(stream=sys.stderr, level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("rq").setLevel(logging.ERROR)
    if settings.redis_url is None:
        raise RuntimeError("ENGINESMITH_REDIS_URL is not set")
    catalog = Catalog.open(settings, settings.redis_url)
    queue = Queue(settings.redis_url)
    try:
        job = catalog.moved(
            id,
            was={"queued"},
            to="running",
            attempt=attempt,
            lease_s=settings.lease_s,
            started_at=now(),
            phase="starting",
        )
    except (Stale, NotFound) as gone:
        log.info("job %s, attempt %d: not started: %s", id, attempt, gone.detail)
        return
    scratch = settings.scratch / "jobs" / f"{id}-{attempt}"
    shutil.rmtree(scratch, ignore_errors=True)
    artifacts = Artifacts(settings.artifacts_url)
    tracing.start(settings, "worker")
    with Lease(catalog, queue, settings, id, attempt, scratch) as lease, _traced(job) as span:
        lease.on_cancel = lambda: _cancelled(artifacts, job, span)
        try:
            _attempt(job, settings, catalog, artifacts, lease)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    tracing.stop()


def _traced(job: Job) -> AbstractContextManager[tracing.Span | None]:
    """The attempt as a span of the trace that the job's request began, or continued."""
    about = {"job.id": job.id, "job.kind": job.kind, "job.attempt": job.attempt, "model": job.model}
    attributes = {f"enginesmith.{name}": value for name, value in (about | {"dataset": job.dataset}).items()}
    return tracing.span(f"job {job.kind}", "consumer", job.traceparent, root=True, **attributes)


def _cancelled(artifacts: Artifacts, job: Job, span: tracing.Span | None) -> None:
    """In the lease's thread: the process ends right after this."""
    _clear(artifacts, job)
    if span is not None:
        span.error = "cancelled"
        span.end()
        tracing.stop(0.5)


def _attempt(job: Job, settings: Settings, catalog: Catalog, artifacts: Artifacts, lease: Lease) -> None:
    report = Report(catalog, job.id, job.attempt)
    try:
        result, finish = _work(job, settings, catalog, artifacts, report, lease)
        changes: dict[str, Any] = {"to": "succeeded", "result": result} | finish
    except Fenced:
        return  # the lease's thread ends this process
    except BaseException as error:
        problem = _problem(error, job)
        tracing.fail(problem.detail)
        if not isinstance(error, Cancelled):
            report.line(problem.detail, "error")
        if problem.status == 500:
            log.error("job %s failed:\n%s", job.id, traceback.format_exc())
        changes = {"to": "failed", "error": problem.body(f"/v1/jobs/{job.id}")}
    report.close()
    try:
        lease.settle()
        if changes["to"] == "succeeded":  # what is published stays, even when a cancel came while it was
            ended = catalog.moved(job.id, was={"running", "cancelling"}, attempt=job.attempt, **changes)
        elif catalog.job(job.id).status == "cancelling":
            ended = catalog.moved(job.id, was={"cancelling"}, to="cancelled", attempt=job.attempt)
        else:
            ended = catalog.moved(job.id, was={"running"}, attempt=job.attempt, **changes)
    except (Stale, Fenced) as gone:
        log.warning("job %s, attempt %d: %s", job.id, job.attempt, gone.detail)
        return
    if not (ended.error and ended.error["retryable"]):
        _clear(artifacts, job)


def _work(
    job: Job, settings: Settings, catalog: Catalog, artifacts: Artifacts, report: Report, lease: Lease
) -> tuple[Result, dict[str, Any]]:
    """The result, and further changes of the job that ends with it."""
    name = str(job.spec["name"]) if job.kind == "import" else (job.model or "").partition("@")[0]
    if job.attempt > 1 and name and (published := find_version(artifacts, name, job.id)):
        catalog.put_version(published)  # the attempt before got as far as the manifest
        return Result(model=published.ref, verdict=published.verdict, report=published.details.get("report", {})), {}

    tracing.phase("starting")
    from workers.passes import apply

    spec = specs.parse({k: v for k, v in job.spec.items() if v is not None} | _resolved(job))
    scratch = settings.scratch / "jobs" / f"{job.id}-{job.attempt}"
    scratch.mkdir(parents=True)
    threads = settings.threads or os.cpu_count() or 1
    ctx = Context(
        job, settings, artifacts, catalog, report, scratch, threads, _device(spec), int(getattr(spec, "seed", 0) or 0)
    )
    outcome = apply(spec, ctx)
    done: dict[str, Any] = {"progress": {"done": 1, "total": 1, "unit": "", "eta_s": 0}}
    lease.check()
    if outcome.evaluation is not None and job.model:
        _keep_evaluation(artifacts, catalog, job, outcome.evaluation)
    if outcome.folder is None:
        return Result(model=job.model, report=outcome.report), done
    ctx.progress(1, 1, phase="publishing")
    prefix = f"models/{name}/files/{job.id}-{job.attempt}"
    files, size = put_files(artifacts, outcome.folder, prefix)
    draft = Version.model_validate(
        {
            "name": name, "version": 1, "folder": prefix, "files": files, "bytes": size, "parent": job.model,
            "made_by": Made(job=job.id, spec=job.spec), "created_at": now(),
        }
        | outcome.draft
        | {"details": dict(outcome.draft.get("details") or {}) | {"report": outcome.report}}
    )  # fmt: skip
    lease.settle()
    lease.check()
    version = publish_version(artifacts, catalog, draft)
    return Result(model=version.ref, verdict=version.verdict, report=outcome.report), done


def _resolved(job: Job) -> dict[str, str]:
    """The exact refs in place of the names that were asked for."""
    return {k: v for k, v in (("model", job.model), ("dataset", job.dataset)) if v and k in job.spec}


def _device(spec: specs.Spec) -> str:
    if not spec.on_gpu:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _keep_evaluation(artifacts: Artifacts, catalog: Catalog, job: Job, evaluation: dict[str, Any]) -> None:
    name, _, n = str(job.model).partition("@")
    full = {"job": job.id, "created_at": now()} | evaluation
    artifacts.put_bytes(json.dumps(full).encode(), f"models/{name}/{n}/evaluations/{job.id}.json")
    catalog.put_evaluation(str(job.model), full)


def _clear(artifacts: Artifacts, job: Job) -> None:
    """What a job leaves behind in the store when it ends: nothing. What this misses, the sweeper finds."""
    try:
        artifacts.delete_all(f"checkpoints/{job.id}")
        if job.kind == "import":
            artifacts.delete(str(job.spec["upload"]))
    except Problem as problem:
        log.warning("job %s: not cleared: %s", job.id, problem.detail)


def _problem(error: BaseException, job: Job) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientStorage("the worker's disk is full", hint="free some space, then retry the job")
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return Internal(
            f"out of memory: {error}",
            code="out_of_memory",
            hint="a smaller batch_size or max_batch needs less",
            retryable=True,
        )
    return Internal(
        f"{type(error).__name__}: {error}"[:2000],
        hint=f"this is a defect in Enginesmith; the worker's log has the whole story of job {job.id}",
    )
