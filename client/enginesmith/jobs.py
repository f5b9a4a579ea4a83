"""Jobs: submit, wait, watch, cancel, retry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import httpx

from .errors import ApiError, JobFailed, TimedOut, Unreachable
from .records import Event, Job, Record, parse
from .transport import Transport, pause

HOLD_S = 20  # how long one answer of a wait is held; API.md allows 60
JobList = list[Job]


class Jobs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def submit(
        self,
        kind: str,
        *,
        wait: bool = False,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Job:
        """Submits a job; fields that are None are left to the service's defaults.

        wait: until it has ended, at most timeout seconds.

        Raises ApiError when it is refused; with wait JobFailed and TimedOut too.
        """
        body = {"kind": kind} | {k: v for k, v in fields.items() if v is not None}
        made = self._transport.json("POST", "/v1/jobs", json=body, makes_job=True, idempotency_key=idempotency_key)
        return self._waited(Job(made), wait, timeout)

    def get(self, job: str | Job) -> Job:
        return Job(self._transport.json("GET", f"/v1/jobs/{_id(job)}"))

    def list(
        self,
        *,
        kind: str | None = None,
        status: str | None = None,
        model: str | None = None,
        parent: str | Job | None = None,
        limit: int | None = 50,
    ) -> JobList:
        """Newest first; limit None for all. parent: the trials of that search or optimize job."""
        of = None if parent is None else _id(parent)
        found = self._transport.pages("/v1/jobs", limit=limit, kind=kind, status=status, model=model, parent=of)
        return [Job(item) for item in found]

    def wait(self, job: str | Job, timeout: float | None = None, *, check: bool = True) -> Job:
        """The job once it has ended. check: raise JobFailed unless it succeeded. After timeout seconds: TimedOut."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = HOLD_S if until is None else max(0.0, min(HOLD_S, until - time.monotonic()))
            headers = {"Prefer": f"wait={int(left)}"} if left >= 1 else {}
            found = Job(self._transport.json("GET", f"/v1/jobs/{_id(job)}", headers=headers))
            if found.ended:
                if check and found.status != "succeeded":
                    raise JobFailed(found)
                return found
            if until is not None and time.monotonic() >= until:
                raise TimedOut(f"job {found.id} is still {found.status} ({found.phase}) after {timeout:g} s")
            # Also where the service (or a proxy) does not hold the answer, this asks no more than five times a second.
            time.sleep(0.2 if until is None else max(0.0, min(0.2, until - time.monotonic())))

    def watch(self, job: str | Job, *, last_event_id: str | None = None) -> Iterator[Event]:
        """Every event of a job from its first (or after last_event_id) until it has ended, over lost connections too.

        Raises Unreachable when the service stays away, ApiError when there is no such job.
        """
        seen, missed = last_event_id, 0
        while True:
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if seen:
                headers["Last-Event-ID"] = seen
            try:
                with self._transport.stream("GET", f"/v1/jobs/{_id(job)}/events", headers=headers) as response:
                    for event in read_events(split_lines(response.iter_text())):
                        seen, missed = event.id or seen, 0
                        yield event
            except httpx.TransportError as error:
                missed += 1
                if missed > self._transport.retries + 2:
                    raise Unreachable(self._transport.url, error) from error
            except ApiError as error:
                missed += 1
                if error.status not in {429, 502, 503} or missed > self._transport.retries + 2:
                    raise
            else:
                # The stream ended by itself. A terminal event is no proof: a job that failed may have been retried.
                if self.get(job).ended:
                    return
                missed += 1
            self._transport.sleep(pause(min(missed, 4)))

    def cancel(self, job: str | Job) -> Job:
        return Job(self._transport.json("POST", f"/v1/jobs/{_id(job)}/cancel", repeatable=True))

    def retry(self, job: str | Job, *, wait: bool = False, timeout: float | None = None) -> Job:
        """Runs a failed or cancelled job again."""
        made = self._transport.json("POST", f"/v1/jobs/{_id(job)}/retry", makes_job=True)
        return self._waited(Job(made), wait, timeout)

    def report(self, job: str | Job) -> Record:
        return cast(Record, self._transport.json("GET", f"/v1/jobs/{_id(job)}/report"))

    def report_html(self, job: str | Job) -> str:
        return self._transport.request("GET", f"/v1/jobs/{_id(job)}/report", headers={"Accept": "text/html"}).text

    def kinds(self) -> Record:
        """The menu, with JSON schemas and which targets the installation can build."""
        return cast(Record, self._transport.json("GET", "/v1/jobs/kinds"))

    def _waited(self, job: Job, wait: bool, timeout: float | None) -> Job:
        return self.wait(job, timeout) if wait else job


def _id(job: str | Job) -> str:
    return job if isinstance(job, str) else str(job["id"])


def read_events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events by the rules of the HTML standard; an unfinished one at the end is dropped."""
    kind, last_id = "message", ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield Event(last_id, kind, _data("\n".join(data)))
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            last_id = value


def split_lines(chunks: Iterator[str]) -> Iterator[str]:
    """Lines as server-sent events mean them. (str.splitlines would also cut at U+2028, which JSON may hold.)"""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield line.removesuffix("\r")


def _data(text: str) -> Record:
    try:
        found = parse(text)
    except ValueError:
        found = text
    return found if isinstance(found, Record) else Record(text=found)
