"""One request to a receiver: to an address that was just checked, within a stated time, whatever it answers."""

from __future__ import annotations

import asyncio
import functools
import importlib
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from app.errors import Unprocessable
from app.webhooks.addresses import Allowed, Place, Resolve, parse_url, reachable

if TYPE_CHECKING:
    import httpcore

Tls = Callable[[], ssl.SSLContext]
WHOLE_S = 10.0
CONNECT_S = 4.0  # to one of several addresses
MOST_READ = 64 * 1024


class Answered(NamedTuple):
    """status: None where there was no answer. error: a word for what went wrong; None after a 2xx. retry_after_s: as
    the receiver asks."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None


async def post(
    url: str, headers: Mapping[str, str], body: bytes, allowed: Allowed, resolve: Resolve, tls: Tls
) -> Answered:
    """Raises nothing that a receiver or its name server could cause. Redirects are not followed, no proxy is asked."""
    try:
        async with asyncio.timeout(WHOLE_S):
            place = parse_url(url)
            addresses = await reachable(place, allowed, resolve)
            # It is imported when the first one is sent, in a thread: predictions are answered meanwhile.
            core = await asyncio.to_thread(importlib.import_module, "httpcore")
            context = await asyncio.to_thread(tls) if place.scheme == "https" else None
            answer = Answered(error="connect_failed")
            for address in addresses:
                try:
                    return await _ask(place, address, headers, body, context)
                except (core.ConnectError, core.ConnectTimeout) as error:
                    if any(isinstance(of, ssl.SSLError) for of in error.args):
                        return Answered(error="tls_failed")
                    answer = Answered(error="connect_failed")
                except core.TimeoutException:
                    return Answered(error="timeout")
                except (core.NetworkError, core.ProtocolError):
                    return Answered(error="broken_answer")
            return answer
    except TimeoutError:
        return Answered(error="timeout")
    except Unprocessable as refused:
        return Answered(error=refused.code)


async def _ask(
    place: Place, address: str, headers: Mapping[str, str], body: bytes, context: ssl.SSLContext | None
) -> Answered:
    import httpcore

    target = httpcore.URL(
        scheme=place.scheme.encode(), host=address.encode(), port=place.port, target=place.target.encode()
    )
    # Certificates are checked against the name, though it is an address that is connected to.
    about = {"timeout": {"connect": CONNECT_S}, "sni_hostname": place.host}
    # A pool for one request: a connection must never serve another name that has the same address.
    async with (
        httpcore.AsyncConnectionPool(ssl_context=context, max_connections=1) as pool,
        pool.stream("POST", target, headers=_lines(place, headers, body), content=body, extensions=about) as answer,
    ):
        await _throw_away(answer)
        fine = 200 <= answer.status < 300
        asked = next((value for name, value in answer.headers if name.lower() == b"retry-after"), None)
        return Answered(answer.status, None if fine else f"http_{answer.status}", _seconds(asked))


def _lines(place: Place, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
    all = {"Host": place.header, "Content-Length": str(len(body)), "Accept-Encoding": "identity"} | dict(headers)
    return [(name.encode(), value.encode()) for name, value in all.items()]


async def _throw_away(answer: httpcore.Response) -> None:
    read = 0
    async for chunk in answer.aiter_stream():
        read += len(chunk)
        if read > MOST_READ:
            return


def _seconds(asked: bytes | None) -> float | None:
    """Of a header Retry-After: seconds, or a date."""
    text = (asked or b"").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None


@functools.cache
def trusted() -> ssl.SSLContext:
    """The authorities that the system knows, and those of certifi."""
    import httpcore

    return httpcore.default_ssl_context()
