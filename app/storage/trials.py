"""Jobs that wait for their trials, in Redis: how a step ends, what wakes the next, what a process has in hand."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Literal

from app.domain.records import Job
from app.errors import Conflict, NotFound
from app.storage import encoding, scripts
from app.storage.redis import PatientRedis

ALL = "es:trials"
_HELD_S = 30 * 24 * 3600
_CURVES_S = 90 * 24 * 3600


class Stale(Conflict):
    """Somebody else changed it first."""

    default_code = "stale"


class Fenced(Conflict):
    """This attempt is no longer the one that may speak for its job."""

    default_code = "fenced"


class Trials:
    """A job that waits is `running` in one of three ways: a step holds a lease; `waiting`, when only its trials run;
    `due`, when its next step is on the queue. Each change is one script, so that no end of a trial is ever missed."""

    def __init__(self, redis: PatientRedis, read: Callable[[str], Job]) -> None:
        self._redis: Any = redis
        self._read = read
        self._add = redis.register_script(scripts.ADD_TRIAL)
        self._park = redis.register_script(scripts.PARK)
        self._wake = redis.register_script(scripts.WAKE)
        self._claim = redis.register_script(scripts.CLAIM)

    def add(self, trial: Job, attempt: int) -> bool:
        """Whether it is new. attempt: the one at its parent that asks. Raises Fenced when that may not ask any more."""
        assert trial.parent is not None
        record = trial.model_dump(mode="json")
        fields = encoding.fields(record, but={"history"})
        hash, events = f"es:job:{trial.id}", f"es:job:{trial.id}:events"
        answer = self._add(
            keys=[hash, events, "es:jobs:open", ALL, *places(trial.parent), of_parent(trial.parent)],
            args=[
                attempt, trial.id, encoding.millis(trial.created_at), encoding.event(record),
                *(x for pair in fields.items() for x in pair),
            ],
        )  # fmt: skip
        if answer == "fenced":
            raise Fenced(f"attempt {attempt} of job {trial.parent} may start no trials any more")
        return bool(answer == "added")

    def of(self, parent: str, names: Iterable[str] | None = None) -> dict[str, Job]:
        """A job's trials by name, without histories: all, or those of the names that there are; oldest first."""
        ids = self.ids(parent) if names is None else [f"{parent}-{name}" for name in names]
        found: dict[str, Job] = {}
        for first in range(0, len(ids), 200):
            pipe = self._redis.pipeline(transaction=False)
            for id in ids[first : first + 200]:
                pipe.hgetall(f"es:job:{id}")
            for id, held in zip(ids[first : first + 200], pipe.execute(), strict=True):
                if held:
                    found[id[len(parent) + 1 :]] = encoding.job_of(held)
        return found

    def ids(self, parent: str) -> list[str]:
        """Of all trials of a job, oldest first."""
        found: list[str] = self._redis.zrange(of_parent(parent), 0, -1)
        return found

    def open(self, parent: str) -> list[str]:
        """The ids of a job's trials that have not ended."""
        return sorted(self._redis.smembers(places(parent)[1]))

    def has_news(self, parent: str) -> bool:
        """Whether a trial has ended since the last step began, or none is left to wait for."""
        hash, open = places(parent)
        return bool(int(self._redis.hget(hash, "news") or 0)) or not self._redis.scard(open)

    def park(self, job: Job, allowance: int, **changes: Any) -> Literal["waiting", "due"]:
        """The end of a step. "due": a trial has ended since it began, so that the next step, with the next attempt, is
        to be begun now. allowance: attempts that the next step may take. Raises Stale, and NotFound when there is
        nothing to wait for."""
        fields = encoding.fields(job.but(**changes).model_dump(mode="json", include=set(changes)), but={"history"})
        answer = self._park(
            keys=[f"es:job:{job.id}", f"es:lease:{job.id}", places(job.id)[1]],
            args=[job.attempt, uuid.uuid4().hex, allowance, *(x for pair in fields.items() for x in pair)],
        )
        if answer[0] == "nothing":
            raise NotFound(f"job {job.id} has no trial to wait for", code="no_trials")
        if answer[0] == "stale":
            raise Stale(f"job {job.id} is {answer[1]}, or its attempt {job.attempt} has been replaced")
        parked: Literal["waiting", "due"] = answer[0]
        return parked

    def wake(self, id: str, allowance: int) -> Job | None:
        """Makes the next step of a waiting job due. Gives the job to the one caller who did, to enqueue or claim it."""
        if not self._wake(keys=[f"es:job:{id}"], args=[uuid.uuid4().hex, allowance]):
            return None
        return self._read(id)

    def claim(self, id: str, attempt: int, lease_s: float) -> Job:
        """Begins the step that is due, under a lease. Raises Stale when another process has, or it is not due."""
        keys = [f"es:job:{id}", f"es:lease:{id}"]
        if not self._claim(keys=keys, args=[attempt, uuid.uuid4().hex, int(lease_s * 1000)]):
            raise Stale(f"no step of job {id} is due with attempt {attempt}")
        return self._read(id)

    # Trials that ended because their parent did ----------------------------------------------------------------------

    def stop(self, parent: str, ids: Iterable[str]) -> None:
        """Remembers which trials ended with their parent, and not by themselves: a retry goes on with them."""
        if ids := list(ids):
            self._redis.sadd(_stopped(parent), *ids)

    def stopped(self, parent: str) -> list[str]:
        return sorted(self._redis.smembers(_stopped(parent)))

    def forget_stopped(self, parent: str, id: str) -> None:
        self._redis.srem(_stopped(parent), id)

    # How searches over the same have gone --------------------------------------------------------------------------

    def note_curve(self, key: str, id: str, curve: dict[str, Any]) -> None:
        """key: the content of what is searched. Kept for 90 days."""
        self._redis.hset(f"es:searches:{key}", id, json.dumps(curve))
        self._redis.expire(f"es:searches:{key}", _CURVES_S)

    def curves(self, key: str) -> dict[str, dict[str, Any]]:
        """By the job's id."""
        return {id: json.loads(text) for id, text in sorted(self._redis.hgetall(f"es:searches:{key}").items())}

    def drop_study(self, id: str) -> None:
        """What the sampler of a search has written down: see workers.search.journal."""
        for keys in _chunks(list(self._redis.scan_iter(f"{study_of(id)}:*", count=1000))):
            self._redis.delete(*keys)

    def studies(self) -> list[str]:
        """The ids of searches whose journal is still there."""
        return [key.split(":")[2] for key in self._redis.scan_iter("es:study:*:log_number", count=1000)]

    # What a process does that does several jobs ----------------------------------------------------------------------

    def hold(self, delivery: str, id: str, attempt: int) -> None:
        """Notes what the process of a delivery is doing now: its worker, which started it for another job, looks here
        when it dies."""
        self._redis.set(f"es:held:{delivery}", json.dumps([id, attempt]), ex=_HELD_S)

    def held(self, delivery: str) -> tuple[str, int] | None:
        text = self._redis.get(f"es:held:{delivery}")
        return tuple(json.loads(text)) if text else None

    def let_go(self, delivery: str) -> None:
        self._redis.delete(f"es:held:{delivery}")


def study_of(id: str) -> str:
    """The prefix of a search's journal."""
    return f"es:study:{id}"


def _chunks(keys: list[str]) -> list[list[str]]:
    return [keys[at : at + 500] for at in range(0, len(keys), 500)]


def places(parent: str | None) -> tuple[str, str]:
    """Of a job that has trials: its hash, and the set of those that are open; twice NO_KEY for no job."""
    return (f"es:job:{parent}", f"es:job:{parent}:open") if parent else (scripts.NO_KEY, scripts.NO_KEY)


def of_parent(parent: str) -> str:
    """All trials of a job, by their time."""
    return f"es:job:{parent}:trials"


def extras(id: str) -> tuple[str, str, str]:
    """What is kept of a job's trials, beside the trials."""
    return of_parent(id), places(id)[1], _stopped(id)


def _stopped(parent: str) -> str:
    return f"es:job:{parent}:stopped"
