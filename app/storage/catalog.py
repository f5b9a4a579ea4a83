"""Records in Redis: what is happening (jobs, workers, deployments), and an index of what exists."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any, Self

from app.domain.keys import Key
from app.domain.plans import pools_of, runtime_of_queue
from app.domain.records import ENDED, Job, Progress, Status, now
from app.domain.webhooks import announcement
from app.errors import NotFound, Overloaded
from app.settings import Settings
from app.storage import encoding, scripts, trials
from app.storage.deployments import Deployments, texts_of
from app.storage.index import Index
from app.storage.redis import PatientRedis, connect
from app.storage.trials import Fenced, Stale, Trials
from app.storage.webhooks import HOOKS, Webhooks

__all__ = ["Catalog", "Fenced", "Stale"]

IDEMPOTENCY_TTL_S = 24 * 3600
WORKER_TTL_S = 15
_MEMORY, _ENDED = "es:remembers", "es:ended"


class Catalog(Index, Deployments):
    """Every call may raise Unavailable when Redis is gone for longer than the connection is patient."""

    def __init__(self, redis: PatientRedis, pools: Collection[str] = ()) -> None:
        """pools: queues whose workers come when there is something for them."""
        Index.__init__(self, redis)
        Deployments.__init__(self, redis)
        self._add = redis.register_script(scripts.ADD)
        self._move = redis.register_script(scripts.MOVE)
        self._renew = redis.register_script(scripts.RENEW)
        self._note = redis.register_script(scripts.NOTE)
        self.trials = Trials(redis, self.brief)
        self.webhooks = Webhooks(redis)
        self._pools = pools

    @classmethod
    def open(cls, settings: Settings, url: str, *, patience_s: float | None = None) -> Self:
        patience_s = settings.redis_patience_s if patience_s is None else patience_s
        return cls(connect(url, patience_s=patience_s), pools_of(settings.pools))

    def ping(self) -> None:
        self.redis.ping()

    def remembers(self) -> bool:
        """Whether this Redis is the one that `note_memory` was called on, and has not lost what it held since."""
        return bool(self.redis.exists(_MEMORY))

    def note_memory(self) -> None:
        """What exists is known here from now on."""
        self.redis.set(_MEMORY, now())

    # Jobs ---------------------------------------------------------------------------------------------------------

    def add(self, job: Job, most: int | None = None) -> Job:
        """A new job, queued. most: how many its key may have that have not ended; None: any. Raises Overloaded where
        it has so many. A trial is added by its parent: see `trials`."""
        fields = encoding.fields(job.model_dump(mode="json"), but={"history"})
        of_key = _of_key(job.key) if job.key is not None else scripts.NO_KEY
        keys = [_job(job.id), _events(job.id), "es:jobs:open", "es:jobs", of_key]
        state = encoding.event(job.model_dump(mode="json"))
        args: list[Any] = [job.id, encoding.millis(job.created_at), state, "" if most is None else most]
        held = self._add(keys=keys, args=[*args, *(part for field in fields.items() for part in field)])
        if held is not None and most is not None:
            raise too_many_jobs(int(held), most)
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

    def counts(self) -> tuple[int, int]:
        """How many jobs are kept, trials aside, and how many have not ended, trials too."""
        return int(self.redis.zcard("es:jobs")), int(self.redis.scard("es:jobs:open"))

    def ended(self) -> dict[tuple[str, str], int]:
        """How many jobs have ended since this Redis began, trials too, by kind and status."""
        kinds = {tuple(of.split(" ")): int(count) for of, count in self.redis.hgetall(_ENDED).items()}
        return {(kind, status): count for (kind, status), count in kinds.items()}

    def memory(self) -> tuple[int, int]:
        """Bytes: what Redis says that it holds, and may hold (0: it knows no bound)."""
        told = self.redis.info("memory")
        return int(told["used_memory"]), int(told.get("maxmemory", 0))

    def jobs_before(self, at_ms: int, first: int, count: int) -> list[str]:
        """Ids of jobs that were made before then, oldest first, after the first so many."""
        found: list[str] = self.redis.zrangebyscore("es:jobs", "-inf", at_ms, start=first, num=count)
        return found

    def forget_job(self, id: str) -> None:
        """A job that has ended, with its trials: as if there had been none. The list of jobs forgets it last, so that
        whoever is stopped halfway can go on."""
        for one in (*self.trials.ids(id), id):
            self.redis.delete(_job(one), _events(one), _history(one), _lease(one), *trials.extras(one))
            self.redis.zrem(trials.ALL, one)
            self.redis.srem("es:jobs:open", one)
        self.trials.drop_study(id)
        self.redis.zrem("es:jobs", id)

    def open_of(self, key: str) -> int:
        """How many jobs that were submitted with a key have not ended; their trials are not counted."""
        if ended := self.redis.sdiff([_of_key(key), "es:jobs:open"]):
            self.redis.srem(_of_key(key), *ended)
        return int(self.redis.scard(_of_key(key)))

    def open_jobs_of(self, key: str) -> list[Job]:
        """Those, without histories."""
        return self._briefs(self.redis.sinter([_of_key(key), "es:jobs:open"]))

    def open_jobs(self) -> list[Job]:
        """Every job that has not ended, without histories."""
        return self._briefs(self.redis.smembers("es:jobs:open"))

    def _briefs(self, ids: Collection[str]) -> list[Job]:
        found = []
        for id in sorted(ids):
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
        counts_for: str | None = None,
        most: int | None = None,
        **changes: Any,
    ) -> Job:
        """The one way a job changes state: a compare-and-set on (id, from, to, attempt).

        attempt: the number that must be the current one. next_attempt: the one that it becomes. lease_s: a lease that
        starts now; without it the job has none, unless it is only being cancelled. counts_for: the API key whose it is
        from now on. most: how many open jobs that key may have.
        Raises NotFound; Stale when somebody else was first; Overloaded where the key has too many.
        """
        before = self.brief(id)
        if next_attempt is not None:
            changes["attempt"] = next_attempt
        changes = {"phase": to} | ({"finished_at": now()} if to in ENDED else {}) | changes
        if to in ENDED or to == "queued":
            changes |= {"waiting": False, "due": False}
        after = before.but(status=to, **changes)
        fields = encoding.fields(after.model_dump(mode="json", include=set(changes)), but={"history"})
        news = announcement(after)
        told = ("", "", "", "") if news is None else (news[0].event, news[0].id, news[0].model_dump_json(), news[1])
        answer = self._move(
            keys=[
                _job(id), _events(id), _lease(id), "es:jobs:open", *trials.places(before.parent), HOOKS,
                scripts.NO_KEY if counts_for is None else _of_key(counts_for), _ENDED,
            ],
            args=[
                f"|{'|'.join(was)}|", to, "" if attempt is None else attempt, uuid.uuid4().hex,
                "" if lease_s is None else int(lease_s * 1000), encoding.event(after.model_dump(mode="json")), id,
                "1" if to in ENDED else "", *told, "" if most is None else most, before.kind,
                *(x for pair in fields.items() for x in pair),
            ],
        )  # fmt: skip
        if answer[0] == "missing":
            raise NotFound(f"no job {id!r}", code="job_not_found")
        if answer[0] == "full" and most is not None:
            raise too_many_jobs(int(answer[1]), most)
        if answer[0] == "stale":
            raise Stale(f"job {id} is {answer[1]} (attempt {answer[2]}), not {' or '.join(was)}")
        return self.brief(id)

    def again(self, job: Job, attempts: int, key: Key | None = None) -> Job:
        """Puts a job that failed, or was cancelled, back to the beginning, with so many further attempts; to be
        enqueued. key: whose it is from now on, if anybody's. Raises Stale; Overloaded where that key has too many."""
        owner = job.key if key is None else key.owner
        moved = self.moved(
            job.id,
            was={"failed", "cancelled"},
            to="queued",
            attempt=job.attempt,
            next_attempt=job.attempt + 1,
            allowed_attempts=job.attempt + attempts,
            progress=Progress(),
            result=None,
            error=None,
            started_at=None,
            finished_at=None,
            key=owner,
            counts_for=owner,
            most=None if key is None else key.limits.jobs,
        )
        if job.key not in (None, owner):
            self.redis.srem(_of_key(job.key), job.id)
        return moved

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
        return texts_of(self.redis, "es:worker:*")

    def takers(self) -> list[dict[str, Any]]:
        """Who takes jobs: workers alive, and pools, as what they will be."""
        if not self._pools:
            return self.live_workers()
        targets = {runtime: {"ok": True} for queue in self._pools if (runtime := runtime_of_queue(queue))}
        return [*self.live_workers(), {"queues": list(self._pools), "targets": targets}]


def too_many_jobs(held: int, most: int) -> Overloaded:
    """For a key that has so many jobs."""
    return Overloaded(
        f"this key has {held} jobs that have not ended, and may have {most}",
        code="too_many_jobs",
        hint="wait for one of them, or cancel it",
        headers={"Retry-After": "5"},
    )


def _of_key(key: str) -> str:
    return f"es:jobs:of:{key}"


def _job(id: str) -> str:
    return f"es:job:{id}"


def _events(id: str) -> str:
    return f"es:job:{id}:events"


def _history(id: str) -> str:
    return f"es:job:{id}:history"


def _lease(id: str) -> str:
    return f"es:lease:{id}"
