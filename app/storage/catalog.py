"""Records in Redis: what is happening (jobs, deployments, workers), and an index of what exists."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any, Self

from app.domain.absent import no_deployment
from app.domain.records import ENDED, Dataset, Deployment, Job, LastReady, Status, Version, now
from app.errors import NotFound
from app.settings import Settings
from app.storage import encoding, scripts, trials
from app.storage.redis import PatientRedis, connect
from app.storage.trials import Fenced, Stale, Trials

__all__ = ["Catalog", "Fenced", "Stale"]

IDEMPOTENCY_TTL_S = 24 * 3600
REPLICA_TTL_S = 10
WORKER_TTL_S = 15


class Catalog:
    """Every call may raise Unavailable when Redis is gone for longer than the connection is patient."""

    def __init__(self, redis: PatientRedis) -> None:
        self.redis: Any = redis  # redis-py types every answer as "maybe awaitable, maybe bytes"
        self._move = redis.register_script(scripts.MOVE)
        self._renew = redis.register_script(scripts.RENEW)
        self._note = redis.register_script(scripts.NOTE)
        self._deploy = redis.register_script(scripts.DEPLOY)
        self._ready = redis.register_script(scripts.READY)
        self.trials = Trials(redis, self.brief)

    @classmethod
    def open(cls, settings: Settings, url: str, *, patience_s: float | None = None) -> Self:
        return cls(connect(url, patience_s=settings.redis_patience_s if patience_s is None else patience_s))

    def ping(self) -> None:
        self.redis.ping()

    # Jobs ---------------------------------------------------------------------------------------------------------

    def add(self, job: Job) -> Job:
        """A new job, queued. A trial is added by its parent: see `trials`."""
        fields = encoding.fields(job.model_dump(mode="json"), but={"history"})
        self.redis.hset(_job(job.id), mapping=fields)
        self.redis.sadd("es:jobs:open", job.id)
        self.redis.zadd("es:jobs", {job.id: encoding.millis(job.created_at)})
        self.redis.xadd(_events(job.id), {"type": "state", "data": encoding.event(job.model_dump(mode="json"))})
        return job

    def job(self, id: str) -> Job:
        """With its history. Raises NotFound."""
        job = self.brief(id)
        rows = self.redis.lrange(_history(id), 0, -1)
        return job.model_copy(update={"history": [json.loads(r) for r in rows]})

    def brief(self, id: str) -> Job:
        """Without its history. Raises NotFound."""
        held = self.redis.hgetall(_job(id))
        if not held:
            raise NotFound(f"no job {id!r}", code="job_not_found", hint="GET /v1/jobs lists them")
        return encoding.job_of(held)

    def jobs(
        self,
        *,
        kind: str | None = None,
        status: str | None = None,
        model: str | None = None,
        parent: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        """Newest first, without histories. model: a name, or a ref. Trials are listed only where `parent` or `kind`
        asks for them: a hundred of them must not hide the work."""
        place = trials.of_parent(parent) if parent else trials.ALL if kind == "trial" else "es:jobs"
        top = encoding.place_of(cursor) if cursor else None
        found: list[Job] = []
        upper: int | str = "+inf" if top is None else top[0]
        while True:
            page = self.redis.zrevrangebyscore(place, upper, "-inf", start=0, num=200, withscores=True)
            fresh = [(i, int(s)) for i, s in page if top is None or (int(s), i) < top]
            for id, score in fresh:
                top = (score, id)
                job = self.brief(id)
                if (kind and job.kind != kind) or (status and job.status != status) or not encoding.about(job, model):
                    continue
                if len(found) == limit:
                    last = found[-1]
                    return found, encoding.cursor_of(str(encoding.millis(last.created_at)), last.id)
                found.append(job)
            if len(page) < 200 or not fresh:
                return found, None
            upper = fresh[-1][1]

    def open_jobs(self) -> list[Job]:
        """Every job that has not ended, without histories."""
        found = []
        for id in sorted(self.redis.smembers("es:jobs:open")):
            try:
                found.append(self.brief(id))
            except NotFound:  # a record that was lost must not keep the others from being looked after
                self.redis.srem("es:jobs:open", id)
        return found

    def moved(
        self,
        id: str,
        *,
        was: Collection[Status],
        to: Status,
        attempt: int | None = None,
        next_attempt: int | None = None,
        lease_s: float | None = None,
        **changes: Any,
    ) -> Job:
        """The one way a job changes state: a compare-and-set on (id, from, to, attempt).

        attempt: the number that must be the current one. next_attempt: the one that it becomes. lease_s: a lease that
        starts now; without it the job has none, unless it is only being cancelled.
        Raises NotFound; Stale when somebody else was first.
        """
        before = self.brief(id)
        if next_attempt is not None:
            changes["attempt"] = next_attempt
        changes = {"phase": to} | ({"finished_at": now()} if to in ENDED else {}) | changes
        if to in ENDED or to == "queued":
            changes |= {"waiting": False, "due": False}
        after = before.but(status=to, **changes)
        fields = encoding.fields(after.model_dump(mode="json", include=set(changes)), but={"history"})
        answer = self._move(
            keys=[_job(id), _events(id), _lease(id), "es:jobs:open", *trials.places(before.parent)],
            args=[
                f"|{'|'.join(was)}|", to, "" if attempt is None else attempt, uuid.uuid4().hex,
                "" if lease_s is None else int(lease_s * 1000), encoding.event(after.model_dump(mode="json")), id,
                "1" if to in ENDED else "", *(x for pair in fields.items() for x in pair),
            ],
        )  # fmt: skip
        if answer[0] == "missing":
            raise NotFound(f"no job {id!r}", code="job_not_found")
        if answer[0] == "stale":
            raise Stale(f"job {id} is {answer[1]} (attempt {answer[2]}), not {' or '.join(was)}")
        return self.brief(id)

    def renew(self, id: str, attempt: int, lease_s: float) -> Status:
        """Renews an attempt's lease; gives the job's status. Raises Fenced when the job has moved on."""
        answer = self._renew(keys=[_job(id), _lease(id)], args=[attempt, int(lease_s * 1000)])
        if answer == "fenced":
            raise Fenced(f"attempt {attempt} of job {id} has been replaced")
        status: Status = answer
        return status

    def leased(self, id: str) -> bool:
        """Whether an attempt of this job is alive."""
        return bool(self.redis.exists(_lease(id)))

    def note(
        self,
        id: str,
        attempt: int,
        type: str,
        data: dict[str, Any],
        *,
        row: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """An event of a running attempt (progress, metrics, log), with fields of the job and a row of its history."""
        encoded = {k: json.dumps(v) for k, v in fields.items()}
        self._note(
            keys=[_job(id), _events(id), _history(id)],
            args=[
                attempt, type, json.dumps(data), "" if row is None else json.dumps(row),
                *(x for pair in encoded.items() for x in pair),
            ],
        )  # fmt: skip

    def trim_history(self, id: str, keep: int) -> None:
        """Drops the rows after the first `keep`: a resumed attempt writes them anew."""
        if keep == 0:
            self.redis.delete(_history(id))
        else:
            self.redis.ltrim(_history(id), 0, keep - 1)

    def events(self, id: str, after: str = "0", block_ms: int | None = None) -> list[tuple[str, str, dict[str, Any]]]:
        """(event id, type, data) after an id; types: state, progress, metrics, log."""
        found = self.redis.xrange(_events(id), min=f"({after}" if after != "0" else "-", count=1000)
        if not found and block_ms:
            answer = self.redis.xread({_events(id): after}, count=1000, block=block_ms)
            found = answer[0][1] if answer else []
        return [(i, f["type"], json.loads(f["data"])) for i, f in found]

    def remember(self, key: str, fingerprint: str, id: str) -> tuple[str, str]:
        """Idempotency: keeps (fingerprint, job id) under a key if it is new; gives those that stand."""
        place = f"es:idempotency:{key}"
        mine = json.dumps([fingerprint, id])
        if self.redis.set(place, mine, nx=True, ex=IDEMPOTENCY_TTL_S):
            return fingerprint, id
        held = json.loads(self.redis.get(place) or mine)
        return held[0], held[1]

    def forget(self, key: str) -> None:
        """Frees an idempotency key whose job could not be made."""
        self.redis.delete(f"es:idempotency:{key}")

    def mark_missing(self, id: str, mark: str, at: float) -> float:
        """When something of a job was first found missing, in seconds; `mark` tells one loss from the next."""
        place = f"es:missing:{id}:{mark}"
        self.redis.set(place, at, nx=True, ex=3600)
        return float(self.redis.get(place) or at)

    def clear_missing(self, id: str, mark: str) -> None:
        self.redis.delete(f"es:missing:{id}:{mark}")

    # Workers ------------------------------------------------------------------------------------------------------

    def announce_worker(self, worker: dict[str, Any]) -> None:
        """What a worker is and can build; forgotten 15 s after the last announcement."""
        self.redis.set(f"es:worker:{worker['id']}", json.dumps(worker), ex=WORKER_TTL_S)

    def drop_worker(self, id: str) -> None:
        self.redis.delete(f"es:worker:{id}")

    def live_workers(self) -> list[dict[str, Any]]:
        return self._all("es:worker:*")

    def _all(self, pattern: str) -> list[dict[str, Any]]:
        held = (self.redis.get(k) for k in sorted(self.redis.scan_iter(pattern, count=500)))
        return [json.loads(h) for h in held if h]

    # Models and data sets -----------------------------------------------------------------------------------------

    def put_version(self, version: Version) -> None:
        self._put("model", version)

    def version(self, name: str, n: int) -> Version:
        """Raises NotFound."""
        held = self.redis.hget(f"es:model:{name}", str(n))
        if held is None:
            raise NotFound(
                f"no version {name}@{n}", code="version_not_found", hint=f"GET /v1/models/{name} lists its versions"
            )
        return Version.model_validate_json(held)

    def versions(self, name: str) -> list[Version]:
        """Ascending. Raises NotFound when there is no such model."""
        held = self.redis.hgetall(f"es:model:{name}")
        if not held:
            raise NotFound(f"no model {name!r}", code="model_not_found", hint="GET /v1/models lists them")
        return sorted((Version.model_validate_json(v) for v in held.values()), key=lambda v: v.version)

    def models(self, *, limit: int = 50, cursor: str | None = None) -> tuple[list[str], str | None]:
        return self._names("model", limit, cursor)

    def drop_version(self, name: str, n: int) -> None:
        self._drop("model", name, n)
        self.redis.delete(f"es:evaluations:{name}@{n}")

    def evaluations(self, ref: str) -> list[dict[str, Any]]:
        """The newest per baseline and data set."""
        return [json.loads(e) for _, e in sorted(self.redis.hgetall(f"es:evaluations:{ref}").items())]

    def put_evaluation(self, ref: str, evaluation: dict[str, Any]) -> None:
        place = f"{evaluation.get('baseline') or ''}|{evaluation.get('dataset') or ''}"
        self.redis.hset(f"es:evaluations:{ref}", place, json.dumps(evaluation))

    def put_dataset(self, dataset: Dataset) -> None:
        self._put("dataset", dataset)

    def dataset(self, name: str, n: int | None = None) -> Dataset:
        """The newest unless numbered. Raises NotFound."""
        if n is None:
            return self.dataset_versions(name)[-1]
        held = self.redis.hget(f"es:dataset:{name}", str(n))
        if held is None:
            raise NotFound(f"no data set {name}@{n}", code="dataset_not_found", hint="GET /v1/datasets lists them")
        return Dataset.model_validate_json(held)

    def dataset_versions(self, name: str) -> list[Dataset]:
        """Ascending. Raises NotFound."""
        held = self.redis.hgetall(f"es:dataset:{name}")
        if not held:
            raise NotFound(f"no data set {name!r}", code="dataset_not_found", hint="GET /v1/datasets lists them")
        return sorted((Dataset.model_validate_json(v) for v in held.values()), key=lambda d: d.version)

    def datasets(self, *, limit: int = 50, cursor: str | None = None) -> tuple[list[str], str | None]:
        return self._names("dataset", limit, cursor)

    def drop_dataset(self, name: str, n: int) -> None:
        self._drop("dataset", name, n)

    def _put(self, kind: str, record: Version | Dataset) -> None:
        self.redis.hset(f"es:{kind}:{record.name}", str(record.version), record.model_dump_json())
        self.redis.zadd(f"es:{kind}s", {record.name: 0})

    def _drop(self, kind: str, name: str, n: int) -> None:
        self.redis.hdel(f"es:{kind}:{name}", str(n))
        if not self.redis.exists(f"es:{kind}:{name}"):
            self.redis.zrem(f"es:{kind}s", name)

    def _names(self, kind: str, limit: int, cursor: str | None) -> tuple[list[str], str | None]:
        low = f"({encoding.parts_of(cursor)[0]}" if cursor else "-"
        names: list[str] = self.redis.zrangebylex(f"es:{kind}s", low, "+", start=0, num=limit + 1)
        return names[:limit], encoding.cursor_of(names[limit - 1]) if len(names) > limit else None

    # Deployments --------------------------------------------------------------------------------------------------

    def deployment(self, name: str) -> Deployment:
        """Raises NotFound."""
        held = self.redis.hget("es:deployments", name)
        if held is None:
            raise no_deployment(name)
        return Deployment.model_validate_json(held)

    def deployments(self) -> list[Deployment]:
        return [Deployment.model_validate_json(d) for _, d in sorted(self.redis.hgetall("es:deployments").items())]

    def put_deployment(
        self, deployment: Deployment, *, was_generation: int | None, was_made: str | None = None
    ) -> Deployment:
        """was_generation: of what it replaces; None when it must be new. was_made: that one's created_at, to tell it
        from another of the same name. Raises Stale when somebody else was first."""
        expected = "" if was_generation is None else str(was_generation)
        # What is not used is not written, so that an older app on the same Redis can still read it.
        text = deployment.model_dump_json(exclude_none=True)
        if not self._deploy(keys=["es:deployments"], args=[deployment.name, expected, was_made or "", text]):
            raise Stale(f"deployment {deployment.name!r} was changed by somebody else", hint="look at it and try again")
        return deployment

    def drop_deployment(self, name: str) -> None:
        self.redis.hdel("es:deployments", name)
        self.redis.hdel("es:deployments:ready", name)

    def last_ready(self, name: str) -> LastReady | None:
        """What was ready last under a name; perhaps of a deployment that was deleted since: see `made`."""
        held = self.redis.hget("es:deployments:ready", name)
        return None if held is None else LastReady.model_validate_json(held)

    def all_last_ready(self) -> dict[str, LastReady]:
        """By name."""
        held = self.redis.hgetall("es:deployments:ready")
        return {name: LastReady.model_validate_json(text) for name, text in held.items()}

    def note_ready(self, name: str, ready: LastReady) -> None:
        """Keeps that a version is ready, unless a newer generation was. Beside the deployment, not in it: its
        generation stays, and an older app can still read it."""
        place = ["es:deployments", "es:deployments:ready"]
        self._ready(keys=place, args=[name, ready.made, ready.generation, ready.model])

    def report_replica(self, replica: str, name: str, report: dict[str, Any]) -> None:
        """What one replica serves under a name; forgotten after 10 s."""
        self.redis.set(f"es:replica:{name}:{replica}", json.dumps({"replica": replica} | report), ex=REPLICA_TTL_S)

    def replicas(self, name: str) -> list[dict[str, Any]]:
        return self._all(f"es:replica:{name}:*")


def _job(id: str) -> str:
    return f"es:job:{id}"


def _events(id: str) -> str:
    return f"es:job:{id}:events"


def _history(id: str) -> str:
    return f"es:job:{id}:history"


def _lease(id: str) -> str:
    return f"es:lease:{id}"
