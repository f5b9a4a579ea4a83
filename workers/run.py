"""One job from start to finish, in a process of its own. Importing this file imports no torch."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from app import tracing
from app.domain import specs, splits
from app.domain.records import Job, Made, Result, Version, now, parse_ref
from app.errors import InsufficientStorage, Internal, NotFound, Problem
from app.queue import Queue, delivery
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog, Fenced, Stale
from app.storage.registry import find_version, publish_version, put_files
from app.trials import WAITING_KINDS, resume_trials, stop_trials, tell_parent
from workers.context import Context
from workers.lease import Cancelled, Ending, Lease, block_sigterm
from workers.passes import Outcome, Waits, apply
from workers.report import Report
from workers.search.watching import watched
from workers.turn import Turn

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
    parts = Parts(settings, catalog, Queue(settings.redis_url), Artifacts(settings.artifacts_url), Ending().heed())
    tracing.start(settings, "worker")
    take_turn(parts, id, attempt, delivery())
    tracing.stop()


@dataclass(frozen=True)
class Parts:
    """What every job of this process shares. apply: what does the work."""

    settings: Settings
    catalog: Catalog
    queue: Queue
    artifacts: Artifacts
    process: Ending
    apply: Callable[[specs.Spec, Context], Outcome | Waits] = apply


def take_turn(parts: Parts, id: str, attempt: int, delivered: str | None = None) -> None:
    """Does what was delivered, and then what this process may as well do next: see `Turn`."""
    turn = Turn(parts.settings, parts.catalog, parts.queue, parts.process, delivered)
    job = turn.begin(id, attempt) or turn.help(id)
    while job is not None:
        done = run_one(job, parts, turn)
        job = turn.after(done) if done is not None else None
    turn.close()


def run_one(job: Job, parts: Parts, turn: Turn) -> Job | None:
    """Does a job that is running, or a step of it. Gives the job as it is then; None when this process lost it."""
    settings, catalog = parts.settings, parts.catalog
    scratch = settings.scratch / "jobs" / f"{job.id}-{job.attempt}"
    shutil.rmtree(scratch, ignore_errors=True)
    with (
        Lease(catalog, parts.queue, settings, job.id, job.attempt, scratch, parts.process) as lease,
        _traced(job) as span,
    ):
        lease.on_cancel = lambda: _cancelled(parts, job, span)
        try:
            return _attempt(job, parts, lease, turn)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _traced(job: Job) -> AbstractContextManager[tracing.Span | None]:
    """The attempt as a span of the trace that the job's request began, or continued."""
    about = {"job.id": job.id, "job.kind": job.kind, "job.attempt": job.attempt, "model": job.model}
    attributes = {f"enginesmith.{name}": value for name, value in (about | {"dataset": job.dataset}).items()}
    return tracing.span(f"job {job.kind}", "consumer", job.traceparent, root=True, **attributes)


def _cancelled(parts: Parts, job: Job, span: tracing.Span | None) -> None:
    """In the lease's thread: the process ends right after this."""
    tell_parent(parts.catalog, parts.queue, job, parts.settings.max_attempts)
    if job.kind in WAITING_KINDS:
        stop_trials(parts.catalog, parts.queue, job.id)
    _clear(parts.artifacts, job)
    if span is not None:
        span.error = "cancelled"
        span.end()
        tracing.stop(0.5)


def _attempt(job: Job, parts: Parts, lease: Lease, turn: Turn) -> Job | None:
    catalog = parts.catalog
    report = Report(catalog, job.id, job.attempt)
    try:
        outcome = _work(job, parts, report, lease)
        if isinstance(outcome, Waits):
            if outcome.trials:
                _still_there(job, catalog)
            turn.start(job, outcome.trials)
            report.close()
            lease.settle()
            return _park(job, parts, outcome)
        result, changes = outcome
        changes = {"to": "succeeded", "result": result} | changes
    except (Fenced, Stale):
        _given_up(job, parts)
        return None
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
        elif catalog.brief(job.id).status == "cancelling":
            ended = catalog.moved(job.id, was={"cancelling"}, to="cancelled", attempt=job.attempt)
        else:
            ended = catalog.moved(job.id, was={"running"}, attempt=job.attempt, **changes)
    except (Stale, Fenced) as gone:
        log.warning("job %s, attempt %d: %s", job.id, job.attempt, gone.detail)
        return None
    if job.kind in WAITING_KINDS:
        stop_trials(catalog, parts.queue, job.id)
        with contextlib.suppress(Problem):  # processes that were called for it, and did not come
            parts.queue.cancel(ended)
    if not (ended.error and ended.error["retryable"]):
        _clear(parts.artifacts, job)
    return ended


def _still_there(job: Job, catalog: Catalog) -> None:
    """Raises NotFound before trials are begun that would all come to the same error."""
    try:
        name, number = parse_ref(job.model) if job.model else ("", None)
        if number is not None:
            catalog.version(name, number)
        if job.dataset:
            catalog.dataset(*parse_ref(job.dataset))
    except NotFound as gone:
        raise NotFound(
            f"{gone.detail}: it was deleted while this job ran",
            code="deleted_meanwhile",
            hint="upload it again, and submit the job again: what the trials found is kept, and not computed twice",
        ) from None


def _park(job: Job, parts: Parts, waits: Waits) -> Job:
    """Lets the worker go until a trial has ended. Raises Stale; Internal when there is nothing to wait for."""
    changes: dict[str, Any] = {"phase": "waiting for trials"}
    if waits.report:
        changes["result"] = Result(model=None, report=waits.report)
    try:
        parts.catalog.trials.park(job, parts.settings.max_attempts, **changes)
    except NotFound:
        raise Internal("a step has asked for no trial, and there is none to wait for") from None
    return parts.catalog.brief(job.id)


def _given_up(job: Job, parts: Parts) -> None:
    """Another attempt has replaced this one, or somebody has ended the job. The lease's thread ends this process, but
    where the work has claimed its end already."""
    with contextlib.suppress(Stale, NotFound):
        ended = parts.catalog.moved(job.id, was={"cancelling"}, to="cancelled", attempt=job.attempt)
        _cancelled(parts, ended, None)


def _work(job: Job, parts: Parts, report: Report, lease: Lease) -> tuple[Result, dict[str, Any]] | Waits:
    """The result, and further changes of the job that ends with it."""
    settings, catalog, artifacts = parts.settings, parts.catalog, parts.artifacts
    name = str(job.spec["name"]) if job.kind == "import" else (job.model or "").partition("@")[0]
    publishes = job.kind not in WAITING_KINDS and job.kind != "trial"
    if publishes and job.attempt > 1 and name and (published := find_version(artifacts, name, job.id)):
        catalog.put_version(published)  # the attempt before got as far as the manifest
        return Result(model=published.ref, verdict=published.verdict, report=published.details.get("report", {})), {}
    if job.kind in WAITING_KINDS:
        resume_trials(catalog, parts.queue, job.id, settings.max_attempts)

    tracing.phase("starting")
    spec = specs.parse({k: v for k, v in job.spec.items() if v is not None} | _resolved(job))
    scratch = settings.scratch / "jobs" / f"{job.id}-{job.attempt}"
    scratch.mkdir(parents=True)
    threads = settings.threads or os.cpu_count() or 1
    seed = int(getattr(spec, "seed", 0) or 0)
    ctx = Context(job, settings, artifacts, catalog, report, scratch, threads, _device(spec, job), seed)
    outcome = watched(spec, ctx, parts.apply) if job.kind == "trial" else parts.apply(spec, ctx)
    if isinstance(outcome, Waits):
        return outcome
    told = outcome.report if job.kind == "trial" else _with_splits(outcome.report, job, catalog)
    done: dict[str, Any] = {"progress": {"done": 1, "total": 1, "unit": "", "eta_s": 0}}
    if job.kind in WAITING_KINDS:
        done = {}  # its steps have said how many trials there were
    if outcome.cache_hit or outcome.report.get("cache_hit"):
        done["cache_hit"] = True
    lease.check()
    if outcome.evaluation is not None and job.model:
        _keep_evaluation(artifacts, catalog, job, outcome.evaluation)
    if outcome.folder is None:
        # What a dry run was asked about is its job's `model`; a result has none where nothing was made.
        asked = None if getattr(spec, "dry_run", False) else job.model
        return Result(model=outcome.model or asked, verdict=outcome.verdict, report=told), done
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
    return Result(model=version.ref, verdict=version.verdict, report=told), done


def _with_splits(report: dict[str, Any], job: Job, catalog: Catalog) -> dict[str, Any]:
    """The report of a job that names a data set says which rows were trained with, chosen by and judged on."""
    if job.dataset is None:
        return report
    with contextlib.suppress(NotFound):
        return report | {"splits": splits.told(catalog.dataset(*parse_ref(job.dataset))) | report.get("splits", {})}
    return report


def _resolved(job: Job) -> dict[str, str]:
    """The exact refs in place of the names that were asked for."""
    return {k: v for k, v in (("model", job.model), ("dataset", job.dataset)) if v and k in job.spec}


def _device(spec: specs.Spec, job: Job) -> str:
    """Steps of a job that waits import no torch; a trial needs what its parent's queue says."""
    if job.kind in WAITING_KINDS or not (spec.on_gpu or (job.kind == "trial" and job.queue != "cpu")):
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
