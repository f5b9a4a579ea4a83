"""HTTP with patience: retries with backoff, Retry-After, idempotency keys, errors as exceptions."""

from __future__ import annotations

import io
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from .errors import Unreachable, from_response
from .records import parse

RETRIED = frozenset({429, 503})
# Longer than any `Prefer: wait`, and than the silence between two heartbeats of an event stream.
TIMEOUT = httpx.Timeout(90.0, connect=5.0)
MAX_PAUSE_S = 30.0


class Transport:
    """One connection pool to one service. retries: how often a request is tried again."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        retries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.key = key
        self.retries = retries
        self.sleep = sleep
        headers = {"User-Agent": "enginesmith-client", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # A proxy set for the outside world must not swallow requests to this very machine.
        local = httpx.URL(self.url).host in {"127.0.0.1", "localhost", "::1"}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport, trust_env=not local
        )

    def close(self) -> None:
        self._http.close()

    def __del__(self) -> None:
        # A client that was forgotten gives its sockets back without a warning.
        with suppress(Exception):
            self._http.close()

    def json(self, method: str, path: str, **kwargs: Any) -> Any:
        """The answer's JSON, objects as Records; None for an empty body."""
        response = self.request(method, path, **kwargs)
        return parse(response.content) if response.content else None

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        makes_job: bool = False,
        idempotency_key: str | None = None,
        repeatable: bool | None = None,
        rewind: io.IOBase | Any | None = None,
        accept: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> httpx.Response:
        """One request, read whole. Raises ApiError, Unreachable.

        makes_job: send an Idempotency-Key, so that trying again makes no second job. repeatable: whether a request
        whose answer was lost may be sent again. rewind: the file being sent, set back before each try. accept: error
        statuses that are answers here.
        """
        sent = dict(headers or {})
        if makes_job:
            sent["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
        if repeatable is None:
            repeatable = makes_job or method in {"GET", "HEAD", "PUT"}
        for attempt in range(self.retries + 1):
            if rewind is not None:
                rewind.seek(0)
            last = attempt == self.retries
            try:
                response = self._http.request(method, path, headers=sent, **kwargs)
            except httpx.TransportError as error:
                never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if last or not (repeatable or never_sent):
                    raise Unreachable(self.url, error) from error
                self.sleep(pause(attempt))
                continue
            if response.is_success or response.status_code in accept:
                return response
            if response.status_code not in RETRIED or last:
                raise from_response(response)
            self.sleep(pause(attempt, response.headers.get("Retry-After")))
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def stream(self, method: str, path: str, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """An answer that is read as it comes, tried once. Raises ApiError and, for the caller, httpx.TransportError."""
        with self._http.stream(method, path, headers=dict(headers or {})) as response:
            if not response.is_success:
                response.read()
                raise from_response(response)
            yield response

    def pages(self, path: str, *, limit: int | None = None, **params: Any) -> Iterator[Any]:
        """The items of a list, page by page. limit: how many at most."""
        given = {k: v for k, v in params.items() if v is not None}
        left, cursor = limit, None
        while left is None or left > 0:
            page = self.json("GET", path, params=given | ({"cursor": cursor} if cursor else {}) | _limit(left))
            for item in page["items"]:
                yield item
                left = None if left is None else left - 1
                if left == 0:
                    return
            cursor = page.get("next_cursor")
            if not cursor:
                return


def _limit(left: int | None) -> dict[str, int]:
    return {} if left is None else {"limit": min(left, 100)}


def pause(attempt: int, retry_after: str | None = None) -> float:
    """Seconds before the next try: what the service asks for, else doubling from 0.2 s with jitter; at most 30 s."""
    if retry_after:
        try:
            asked = float(retry_after)
        except ValueError:
            try:
                asked = parsedate_to_datetime(retry_after).timestamp() - time.time()
            except ValueError:
                asked = 1.0
        return float(min(max(asked, 0.0), MAX_PAUSE_S))
    return float(min(0.2 * 2**attempt, MAX_PAUSE_S) * random.uniform(0.75, 1.25))
