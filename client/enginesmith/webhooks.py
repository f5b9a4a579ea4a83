"""Who is told what happens to jobs; and, for whoever is told, whether it is the service that speaks, and now."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Sequence
from typing import Any, cast

from .errors import BadSignature
from .records import Record
from .transport import Transport

_TIME = re.compile(r"t=([0-9]{1,12})")
_MAC = re.compile(r"v1=([0-9a-f]{64})")


def verify_webhook(
    body: bytes, header: str | None, secret: str, tolerance_s: float = 300.0, *, at: float | None = None
) -> dict[str, Any]:
    """The event that a webhook was called with. Raises BadSignature where it was not signed with this secret, or longer
    ago than `tolerance_s`: what somebody has overheard cannot be sent again later.

    body: as it came, before anything has parsed it. header: Enginesmith-Signature. at: the time now, in Unix seconds.
    A delivery may come twice: remember the `id` of the event for a day.
    """
    parts = [part.strip() for part in (header or "")[:4096].split(",")]
    times = [found[1] for part in parts if (found := _TIME.fullmatch(part))]
    macs = [found[1] for part in parts if (found := _MAC.fullmatch(part))]
    if len(times) != 1 or not macs:
        raise BadSignature("there is no signature", "is this called by a webhook, and the header passed on?")
    expected = hmac.new(secret.encode(), times[0].encode() + b"." + body, hashlib.sha256).hexdigest()
    if not any(hmac.compare_digest(expected, mac) for mac in macs):
        raise BadSignature("the signature does not fit", "check the secret, and that the body is as it came")
    age_s = (time.time() if at is None else at) - int(times[0])
    if abs(age_s) > tolerance_s:
        when = f"{age_s:.0f} s ago" if age_s > 0 else f"{-age_s:.0f} s in the future"
        raise BadSignature(f"it was signed {when}", "check the clocks; allow more with tolerance_s")
    try:
        event = json.loads(body)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise BadSignature("the body is no event", "is this the secret of a webhook?")
    return event


class Webhooks:
    """Needs a key with the scope `admin`, where the service has keys."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def add(self, url: str, events: Sequence[str] | None = None, secret: str | None = None) -> Record:
        """Has a URL called. events: how jobs end, unless said otherwise. The answer alone has the secret."""
        body = {"url": url, "events": None if events is None else list(events), "secret": secret}
        found = self._transport.json("POST", "/v1/webhooks", json={k: v for k, v in body.items() if v is not None})
        return cast(Record, found)

    def list(self) -> list[Record]:
        return list(self._transport.pages("/v1/webhooks"))

    def get(self, id: str) -> Record:
        """With its last deliveries."""
        return cast(Record, self._transport.json("GET", f"/v1/webhooks/{id}"))

    def ping(self, id: str) -> Record:
        """Sends it an event `ping`: what came of it is among the deliveries of `get`."""
        return cast(Record, self._transport.json("POST", f"/v1/webhooks/{id}/ping"))

    def delete(self, id: str) -> None:
        self._transport.request("DELETE", f"/v1/webhooks/{id}")
