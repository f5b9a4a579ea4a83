"""Whether a canary keeps the bounds stated for it: its newest answers, judged one by one as they come."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from app.domain.deployments import Canary, Deployment, Returned
from app.domain.records import now
from app.errors import TAKEN_DOWN, DeadlineExceeded, Problem

MIN_REQUESTS = 20
_NEWEST = 500  # answers that are looked at; more where min_requests says so


class Verdict(NamedTuple):
    """Which bound was broken, in words and in figures."""

    reason: Literal["error_rate", "p99"]
    detail: str
    figures: dict[str, Any]


class Watch:
    """Looks at what one lane answers, and calls `broken` once, with the first bound that it breaks.

    An error is what the service is to blame for: an engine that fails or hangs, any other 5xx, and a refusal (4xx) of
    what the main version then answered. A client's own mistakes (4xx), a full queue (429), a client that went away and
    an engine that is being taken down are none. Nor is a deadline that passed (504): how long a client waits is its own
    affair. It tells that the answer takes longer than that, so where that alone breaks max_p99_ms it is a slow answer.
    A p99 counts as broken by two slow answers at the least: in a small window it would be the one slowest of all.
    """

    def __init__(self, canary: Canary, broken: Callable[[Verdict], None]) -> None:
        self.canary = canary
        self.tripped = False
        self._broken = broken
        self._least = canary.min_requests or MIN_REQUESTS
        self._limit_s = math.inf if canary.max_p99_ms is None else canary.max_p99_ms / 1e3
        self._newest: deque[tuple[float, bool]] = deque(maxlen=max(_NEWEST, self._least))
        self._errors = 0
        self._slow = 0

    def ended(self, seconds: float, error: Exception | None = None) -> None:
        """One request has been answered. seconds: in the queue and in the engine."""
        failed = error is not None and _is_ours(error)
        if error is None or failed or (_is_late(error) and seconds > self._limit_s):
            self._add(seconds, failed)

    def blame(self) -> None:
        """It has refused what the main version then answered."""
        self._add(0.0, True)

    def _add(self, seconds: float, failed: bool) -> None:
        if len(self._newest) == self._newest.maxlen:
            oldest, had_failed = self._newest[0]
            self._errors -= had_failed
            self._slow -= oldest > self._limit_s
        self._newest.append((seconds, failed))
        self._errors += failed
        self._slow += seconds > self._limit_s
        if (self._errors or self._slow) and not self.tripped and (verdict := self._judge()) is not None:
            self.tripped = True
            self._broken(verdict)

    def figures(self) -> dict[str, Any]:
        """Of the newest answers: requests, errors, error_rate, p99_ms."""
        count = len(self._newest)
        times = sorted(seconds for seconds, _ in self._newest)
        return {
            "requests": count,
            "errors": self._errors,
            "error_rate": round(self._errors / count, 4) if count else None,
            "p99_ms": round(times[math.ceil(0.99 * count) - 1] * 1e3, 3) if count else None,
        }

    def _judge(self) -> Verdict | None:
        count, bounds = len(self._newest), self.canary
        if count < self._least:
            return None
        if bounds.max_error_rate is not None and self._errors > bounds.max_error_rate * count:
            share = f"{self._errors} of the newest {count} requests failed ({self._errors / count:.1%})"
            return Verdict("error_rate", f"{share}, and max_error_rate is {bounds.max_error_rate:g}", self.figures())
        if self._slow >= 2 and self._slow > count - math.ceil(0.99 * count):
            figures = self.figures()
            told = f"the p99 of the newest {count} requests is {figures['p99_ms']:g} ms"
            return Verdict("p99", f"{told}, and max_p99_ms is {bounds.max_p99_ms:g}", figures)
        return None


def _is_late(error: Exception) -> bool:
    """Whether a client's own deadline passed; that an engine hangs is another matter."""
    return isinstance(error, DeadlineExceeded) and error.code == DeadlineExceeded.default_code


def _is_ours(error: Exception) -> bool:
    if isinstance(error, Problem):
        return error.status >= 500 and error.code != TAKEN_DOWN and not _is_late(error)
    return True


def taken_back(was: Deployment, canary: Canary, verdict: Verdict, replica: str) -> Deployment:
    """The deployment without its canary, and with the reason."""
    returned = Returned(
        model=canary.model,
        percent=canary.percent,
        reason=verdict.reason,
        detail=verdict.detail,
        figures=verdict.figures,
        replica=replica,
        at=now(),
    )
    return was.but(canary=None, returned=returned, generation=was.generation + 1, updated_at=returned.at)
