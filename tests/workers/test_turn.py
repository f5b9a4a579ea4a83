"""Jobs that wait for their trials: steps and trials in one process, or in several; nothing is missed or done twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import rq

from app.domain.records import Dataset, Job, Split, now
from app.domain.specs import SearchSpec, Spec, TrialSpec
from app.errors import Unprocessable
from app.queue import Queue
from app.reaper import bring_back_now, reap
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from app.trials import resume_trials, stop_trials, try_again
from workers.context import Context
from workers.lease import Ending
from workers.passes import Outcome, Waits
from workers.run import Parts, take_turn
from workers.turn import Turn

SEARCH = {
    "kind": "search", "estimator": "random_forest", "space": {"n": [1]}, "trials": 6, "parallel": 2, "dataset": "d@1",
}  # fmt: skip


class Log:
    """A search whose trials are numbers: asks for `trials` of them, `parallel` at a time; a trial gives its square."""

    def __init__(self) -> None:
        self.steps: list[dict[str, str]] = []
        self.tried: list[int] = []
        self.during: dict[int, Callable[[Context], None]] = {}
        self.before: Callable[[], None] = lambda: None

    def apply(self, spec: Spec, ctx: Context) -> Outcome | Waits:
        if isinstance(spec, TrialSpec):
            self.tried.append(spec.number)
            self.during.get(spec.number, lambda ctx: None)(ctx)
            return Outcome(None, {}, {"values": {"quality": float(spec.number**2)}})
        assert isinstance(spec, SearchSpec)
        found = ctx.trials()
        self.steps.append({name: job.status for name, job in found.items()})
        open = [name for name, job in found.items() if not job.ended]
        if len(found) == spec.trials and not open:
            return Outcome(None, {}, {"squares": [j.result and j.result.report["values"] for j in found.values()]})
        more = range(len(found), min(spec.trials or 0, len(found) + spec.parallel - len(open)))
        self.before()
        again = {name: found[name].spec for name in open if found[name].status == "queued"}
        return Waits(again | {f"t{n}": {"role": "square", "number": n} for n in more})


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def queue(redis_url: str) -> Queue:
    return Queue(redis_url)


@pytest.fixture
def process() -> Ending:
    return Ending()


@pytest.fixture
def parts(settings: Settings, catalog: Catalog, queue: Queue, artifacts: Artifacts, log: Log, process: Ending) -> Parts:
    catalog.put_dataset(
        Dataset(
            name="d", version=1, kind="table", folder="d", files={}, bytes=1, x_shape=(1,), x_dtype="float32",
            y_dtype="int64", split_note="given", created_at=now(),
            splits={n: Split(rows=9, x="x", y="y") for n in ("train", "val", "test")},
        )
    )  # fmt: skip
    return Parts(settings, catalog, queue, artifacts, process, log.apply)


def submit(parts: Parts, **more: Any) -> Job:
    job = Job(id="s1", kind="search", spec=SEARCH | more, dataset="d@1", created_at=now())
    parts.queue.enqueue(parts.catalog.add(job))
    return job


def deliver(parts: Parts) -> bool:
    """What a worker does: takes one delivery off the queue and starts a process for it. Whether there was one."""
    queue = rq.Queue("cpu", connection=parts.queue.redis)
    raw = parts.queue.redis.lpop(queue.key)
    if raw is None:
        return False
    id = raw.decode()
    job = rq.job.Job.fetch(id, connection=parts.queue.redis)
    take_turn(parts, *job.args, delivered=id)
    return True


def test_one_process_does_it_all_while_it_may(parts: Parts, log: Log) -> None:
    submit(parts)
    assert deliver(parts)
    assert not deliver(parts)
    job = parts.catalog.job("s1")
    assert job.status == "succeeded", job.error
    assert job.result is not None
    assert [v["quality"] for v in job.result.report["squares"]] == [0, 1, 4, 9, 16, 25]
    assert log.tried == [0, 1, 2, 3, 4, 5]
    assert len(log.steps) == 7  # the first, and one for each end
    assert (job.waiting, job.due) == (False, False)
    assert parts.catalog.open_jobs() == []
    assert parts.catalog.redis.keys("es:held:*") == []


def test_a_process_for_each_where_none_may_be_kept(parts: Parts, log: Log) -> None:
    parts = Parts(**{**vars(parts), "settings": parts.settings.model_copy(update={"reuse_s": 0.0})})
    submit(parts, parallel=1, trials=3)
    for kind in ("step", "trial", "step", "trial", "step", "trial", "step"):
        before = len(log.steps)
        assert deliver(parts)
        assert (len(log.steps) > before) == (kind == "step")
    assert not deliver(parts)
    assert parts.catalog.job("s1").status == "succeeded"


def test_a_waiting_job_holds_no_worker_and_its_steps_come_before_the_trials(parts: Parts, log: Log) -> None:
    parts = Parts(**{**vars(parts), "settings": parts.settings.model_copy(update={"reuse_s": 0.0})})
    submit(parts, parallel=3)
    deliver(parts)
    job = parts.catalog.job("s1")
    assert (job.status, job.waiting, job.phase) == ("running", True, "waiting for trials")
    assert not parts.catalog.leased("s1")
    assert parts.queue.waiting() == {"s1-t0", "s1-t1", "s1-t2"}
    deliver(parts)
    assert parts.catalog.job("s1").due
    deliver(parts)
    assert log.steps[-1] == {"t0": "succeeded", "t1": "queued", "t2": "queued"}
    while deliver(parts):
        pass
    assert sorted(log.tried) == [0, 1, 2, 3, 4, 5]


def test_a_trial_that_ends_while_the_step_looks_is_not_missed(parts: Parts, log: Log) -> None:
    """Another worker ends t0 after the second step has looked, before that step parks its job."""
    parts = Parts(**{**vars(parts), "settings": parts.settings.model_copy(update={"reuse_s": 0.0})})
    submit(parts, parallel=2, trials=2)
    deliver(parts)
    deliver(parts)  # t0 has ended, and its parent is due

    def meanwhile() -> None:
        log.before = lambda: None
        trial = rq.Queue("cpu", connection=parts.queue.redis)
        assert trial.count == 1
        deliver(parts)  # t1 ends

    log.before = meanwhile
    deliver(parts)
    assert parts.catalog.job("s1").due  # at once: it would else wait for ever
    deliver(parts)
    assert parts.catalog.job("s1").status == "succeeded"


def test_the_same_step_twice_asks_for_nothing_twice(parts: Parts, log: Log) -> None:
    parts = Parts(**{**vars(parts), "settings": parts.settings.model_copy(update={"reuse_s": 0.0})})
    submit(parts, parallel=2, trials=2)
    catalog, queue = parts.catalog, parts.queue
    turn = Turn(parts.settings, catalog, queue, parts.process, None)
    job = turn.begin("s1", 1)
    assert job is not None
    first = Job(
        id="s1-t0", kind="trial", spec={"kind": "trial", "role": "square", "number": 0}, parent="s1", created_at=now()
    )
    assert catalog.trials.add(first, 1)  # and here the process died
    assert not catalog.trials.add(first, 1)
    bring_back_now(catalog, queue, parts.settings, "s1", 1)
    while deliver(parts):
        pass
    assert sorted(log.tried) == [0, 1]
    assert catalog.job("s1").status == "succeeded"


def test_a_failed_trial_wakes_its_parent_too(parts: Parts, log: Log) -> None:
    def fail(ctx: Context) -> None:
        raise Unprocessable("no such thing")

    log.during[1] = fail
    submit(parts, trials=3)
    while deliver(parts):
        pass
    job = parts.catalog.job("s1")
    assert job.status == "succeeded"
    assert log.steps[-1] == {"t0": "succeeded", "t1": "failed", "t2": "succeeded"}


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_what_failed_of_a_job_is_tried_again_with_it(parts: Parts, log: Log, end: str) -> None:
    """What was cancelled too: without its judge, say, no retry of an optimize job could come to another end."""
    fails = [True]

    def fail(ctx: Context) -> None:
        if fails[0]:
            if end == "cancelled":
                parts.catalog.moved(ctx.job.id, was={"running"}, to="cancelling")
            raise Unprocessable("not yet")

    log.during[1] = fail
    submit(parts, trials=2)
    while deliver(parts):
        pass
    trial = parts.catalog.job("s1-t1")
    assert trial.status == end
    fails[0] = False
    try_again(parts.catalog, parts.catalog.job("s1").but(status="succeeded"))
    assert parts.catalog.trials.stopped("s1") == []
    try_again(parts.catalog, parts.catalog.job("s1").but(status="failed"))
    resume_trials(parts.catalog, parts.queue, "s1", 2)
    again = parts.catalog.job("s1-t1")
    assert (again.status, again.attempt, again.error) == ("queued", 2, None)


@pytest.mark.parametrize("phase", ["queued", "waiting", "due"])
def test_a_cancelled_parent_takes_its_trials_along(parts: Parts, log: Log, phase: str) -> None:
    parts = Parts(**{**vars(parts), "settings": parts.settings.model_copy(update={"reuse_s": 0.0})})
    submit(parts, parallel=3)
    for _ in range({"queued": 0, "waiting": 1, "due": 2}[phase]):
        deliver(parts)
    job = parts.catalog.job("s1")
    assert getattr(job, phase, job.status == "queued")
    parts.catalog.moved("s1", was={job.status}, to="cancelled", attempt=job.attempt)
    stop_trials(parts.catalog, parts.queue, "s1")
    assert parts.catalog.open_jobs() == []
    while deliver(parts):
        pass
    assert parts.catalog.job("s1").status == "cancelled"
    again = parts.catalog.moved("s1", was={"cancelled"}, to="queued", next_attempt=job.attempt + 1, allowed_attempts=9)
    parts.queue.enqueue(again)
    while deliver(parts):
        pass
    assert parts.catalog.job("s1").status == "succeeded"
    assert sorted(log.tried) == [0, 1, 2, 3, 4, 5]


def test_a_parent_that_was_ended_takes_no_more_trials(parts: Parts, log: Log) -> None:
    def cancel(ctx: Context) -> None:
        parts.catalog.moved("s1", was={"running"}, to="cancelled")

    submit(parts, trials=2)
    log.during[0] = cancel
    deliver(parts)
    reap(parts.catalog, parts.queue, parts.settings)
    assert {name: job.status for name, job in parts.catalog.trials.of("s1").items()} == {
        "t0": "succeeded", "t1": "cancelled",
    }  # fmt: skip


def test_a_step_that_fails_ends_its_trials(parts: Parts, log: Log) -> None:
    def fail() -> None:
        raise Unprocessable("no")

    submit(parts, parallel=2)
    parts = Parts(**{**vars(parts), "settings": parts.settings.model_copy(update={"reuse_s": 0.0})})
    deliver(parts)
    log.before = fail
    deliver(parts)
    deliver(parts)
    assert parts.catalog.job("s1").status == "failed"
    assert parts.catalog.job("s1-t1").status == "cancelled"
    assert parts.queue.waiting() == set()


def test_a_step_that_waits_for_nothing_fails(parts: Parts) -> None:
    parts = Parts(**{**vars(parts), "apply": lambda spec, ctx: Waits({})})
    submit(parts)
    deliver(parts)
    job = parts.catalog.job("s1")
    assert job.status == "failed"
    assert job.error is not None
    assert "no trial" in job.error["detail"]


def test_what_a_death_leaves_behind_is_found(parts: Parts, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.reaper.QUEUED_GRACE_S", 0.0)
    parts = Parts(
        **{**vars(parts), "settings": parts.settings.model_copy(update={"reuse_s": 0.0, "reap_grace_s": 0.0})}
    )
    catalog, queue = parts.catalog, parts.queue
    submit(parts, parallel=2, trials=3)
    deliver(parts)
    assert reap(catalog, queue, parts.settings) == []
    # A trial ended, and whoever ended it died before it told the parent.
    catalog.moved("s1-t0", was={"queued"}, to="failed", error={"retryable": False})
    assert catalog.job("s1").waiting
    assert reap(catalog, queue, parts.settings) == ["s1"]
    assert catalog.job("s1").due
    assert reap(catalog, queue, parts.settings) == []
    # A worker took the delivery of the step, and died before it began.
    queue.cancel(catalog.job("s1"))
    assert reap(catalog, queue, parts.settings) == ["s1"]
    while deliver(parts):
        pass
    assert catalog.job("s1").status == "succeeded"
    assert log.tried == [1, 2]


def test_a_lost_step_is_taken_again_and_one_that_always_dies_is_given_up(parts: Parts, log: Log) -> None:
    settings = parts.settings.model_copy(update={"reuse_s": 0.0, "reap_grace_s": 0.0})
    parts = Parts(**{**vars(parts), "settings": settings})
    catalog, queue = parts.catalog, parts.queue
    submit(parts, parallel=1, trials=3)
    turn = Turn(settings, catalog, queue, parts.process, None)
    for attempt in (1, 2):
        assert turn.begin("s1", attempt)
        assert catalog.redis.delete("es:lease:s1")
        assert reap(catalog, queue, settings) == ["s1"]
    assert catalog.job("s1").status == "failed"


def test_what_a_process_was_doing_when_it_died(parts: Parts, log: Log) -> None:
    """A process that was started for a step dies in the trial that it took after: its worker looks up which it was."""

    def die(ctx: Context) -> None:
        held.append(parts.catalog.trials.held(delivery))
        log.during.clear()
        raise SystemExit

    held: list[Any] = []
    log.during[2] = die
    submit(parts)
    queue = rq.Queue("cpu", connection=parts.queue.redis)
    delivery = queue.pop_job_id() or ""
    take_turn(parts, "s1", 1, delivered=delivery)
    assert held == [("s1-t2", 1)]


def test_a_process_that_is_asked_to_stop_hands_over(parts: Parts, log: Log, process: Ending) -> None:
    def stop(ctx: Context) -> None:
        process.asked = True

    log.during[1] = stop
    submit(parts)
    deliver(parts)
    assert log.tried == [0, 1]
    assert parts.queue.waiting() == {"s1", "s1-t2"}
    assert parts.catalog.job("s1").due
    process.asked = False
    while deliver(parts):
        pass
    assert parts.catalog.job("s1").status == "succeeded"


def test_who_waits_comes_before_the_next_turn_of_a_search(parts: Parts, log: Log, process: Ending) -> None:
    """Else the step that begins the next turn comes first, and takes the next trials along: nobody else is let in."""

    def turn_is_over(ctx: Context) -> None:
        process.asked = True
        other = parts.catalog.add(Job(id="other", kind="prune", spec={}, created_at=now()))
        parts.queue.enqueue(other)

    log.during[1] = turn_is_over
    submit(parts, parallel=1)
    deliver(parts)
    assert log.tried == [0, 1]
    assert parts.catalog.job("s1").due
    waiting = rq.Queue("cpu", connection=parts.queue.redis).get_job_ids()
    assert [id.split("--")[0] for id in waiting] == ["other", "s1"]


def test_two_processes_at_once_do_nothing_twice(parts: Parts, log: Log) -> None:
    submit(parts, trials=60, parallel=6)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            if not deliver(parts):
                done.wait(0.01)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(2400):
            if parts.catalog.job("s1").ended:
                break
            done.wait(0.05)
    finally:
        done.set()
        for worker in workers:
            worker.join()
    job = parts.catalog.job("s1")
    assert job.status == "succeeded", job
    assert sorted(log.tried) == list(range(60))


def test_others_are_called_while_the_first_step_looks(parts: Parts, log: Log) -> None:
    """Another worker's process starts, and imports what the trials need, before there is a trial to be done."""
    parts.catalog.announce_worker({"id": "w", "queues": ["cpu"], "count": 4})
    submit(parts, parallel=2)
    assert len(log.steps) == 0
    other: list[threading.Thread] = []
    tried = threading.Event()

    def called() -> None:
        log.before = lambda: None
        assert "s1" in parts.queue.waiting()
        other.append(threading.Thread(target=lambda: deliver(parts)))
        other[0].start()

    def first(ctx: Context) -> None:
        if threading.current_thread() in other:
            tried.set()
        else:
            assert tried.wait(20)  # the other one has come for a trial, though nobody delivered it one

    log.before = called
    log.during = dict.fromkeys(range(6), first)
    assert deliver(parts)
    other[0].join()
    assert parts.catalog.job("s1").status == "succeeded"
    assert sorted(log.tried) == list(range(6))
    assert not deliver(parts)


def test_nobody_is_called_who_would_have_nothing_to_do(parts: Parts, log: Log) -> None:
    parts.catalog.announce_worker({"id": "w", "queues": ["gpu"], "count": 4})
    parts.catalog.announce_worker({"id": "v", "queues": ["cpu"], "count": 1})
    submit(parts)
    assert deliver(parts)
    assert not deliver(parts)
    # Where one was called and comes too late, or not at all, nothing is left, and nothing is done.
    parts.catalog.announce_worker({"id": "u", "queues": ["cpu"], "count": 9})
    job = Job(id="s2", kind="search", spec=SEARCH | {"parallel": 4}, dataset="d@1", created_at=now())
    parts.queue.enqueue(parts.catalog.add(job))
    counts: list[int] = []
    log.before = lambda: counts.append(len(rq.Queue("cpu", connection=parts.queue.redis)))
    assert deliver(parts)
    assert counts[0] == 3
    assert not deliver(parts)
    parts.queue.call(parts.catalog.job("s2"))
    before = list(log.tried)
    assert deliver(parts)
    assert log.tried == before
    assert parts.catalog.job("s2").status == "succeeded"


def test_trials_are_listed_only_where_they_are_asked_for(parts: Parts) -> None:
    submit(parts)
    deliver(parts)
    catalog = parts.catalog
    assert [job.id for job in catalog.jobs()[0]] == ["s1"]
    assert {job.id for job in catalog.jobs(parent="s1")[0]} == {f"s1-t{n}" for n in range(6)}
    assert len(catalog.jobs(kind="trial")[0]) == 6
    assert catalog.jobs(parent="other")[0] == []


def test_the_result_of_a_dry_run_names_no_model(parts: Parts) -> None:
    told = replace(parts, apply=lambda spec, ctx: Outcome(None, {}, {"dry_run": True}))
    spec = {"kind": "prune", "model": "m@1", "method": "channel", "dry_run": True}
    job = Job(id="p1", kind="prune", spec=spec, model="m@1", created_at=now())
    parts.queue.enqueue(parts.catalog.add(job))
    assert deliver(told)
    ended = parts.catalog.job("p1")
    assert ended.status == "succeeded", ended.error
    assert (ended.model, ended.result and ended.result.model) == ("m@1", None)
