"""API keys that `enginesmith keys` made: beside the models in the artifact store, so that a Redis that is lost lets
nobody in and shuts nobody out. Redis only tells replicas that something has changed."""

from __future__ import annotations

import ipaddress
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from app.domain.keys import Key
from app.domain.records import now
from app.errors import Conflict, NotFound, Unavailable
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.redis import PatientRedis, connect

_CHANGED = "es:keys:changed"
_PROCESSES = "es:processes:http"
_ALIVE_MS = 5000

# KEYS: what counts the changes, the processes that answer HTTP. ARGV: this one, ms for which one counts as alive.
_LOOK = """
local t = redis.call('TIME')
local at = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[2], at, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at - ARGV[2])
return {redis.call('GET', KEYS[1]) or '0', redis.call('ZCARD', KEYS[2])}
"""


class Kept(NamedTuple):
    """keys: all that were made, the revoked too, by age. damaged: where a key lies that cannot be read: it is let in no
    more, and keeps no other out."""

    keys: list[Key]
    damaged: list[str]

    @property
    def any(self) -> bool:
        return bool(self.keys or self.damaged)


def read_keys(artifacts: Artifacts) -> Kept:
    """Raises Unavailable."""
    found, damaged = [], []
    for place in artifacts.keys("keys"):
        try:
            found.append(Key.model_validate_json(artifacts.get_bytes(place)))
        except NotFound:
            continue
        except ValueError:
            damaged.append(place)
    return Kept(sorted(found, key=lambda key: (key.created_at or "", key.id or "")), damaged)


def put_key(artifacts: Artifacts, key: Key) -> None:
    """Raises FileExistsError for an id that was given before."""
    artifacts.put_bytes(key.model_dump_json(indent=1).encode(), _place(key), create=True)


def revoke_key(artifacts: Artifacts, which: str) -> Key:
    """which: an id, or a name that one key alone has that is not revoked. Twice is no harm. Raises NotFound, Conflict
    where several have the name."""
    keys = read_keys(artifacts).keys
    found = [key for key in keys if key.id == which] or [k for k in keys if k.name == which and not k.revoked_at]
    if not found:
        raise NotFound(f"no key {which!r}", code="key_not_found", hint="enginesmith keys list")
    if len(found) > 1:
        ids = ", ".join(str(key.id) for key in found)
        raise Conflict(f"{len(found)} keys are called {which!r}", hint=f"say which by its id: {ids}")
    (key,) = found
    if key.revoked_at is None:
        key = key.but(revoked_at=now())
        artifacts.put_bytes(key.model_dump_json(indent=1).encode(), _place(key))
    return key


def tell_of_change(url: str) -> bool:
    """Lets every replica look at once; False where Redis does not answer, and they look by themselves in a while."""
    with closing(connect(url, patience_s=1)) as redis:
        try:
            redis.incr(_CHANGED)
        except Unavailable:
            return False
    return True


def look(redis: PatientRedis, process: str) -> tuple[str, int]:
    """(how often keys were changed, how many processes answer HTTP, this one counted). Raises Unavailable."""
    changed, processes = redis.eval(_LOOK, 2, _CHANGED, _PROCESSES, process, _ALIVE_MS)
    return str(changed), int(processes)


def check_exposure(settings: Settings) -> None:
    """Raises Conflict when strangers could reach a service that asks for no key."""
    host = next((host for host in (settings.host, settings.manage_host) if host and not loopback(host)), None)
    if host is None or settings.api_keys or settings.api_keys_file or _any_made(settings):
        return
    raise Conflict(
        f"no API key is configured, so the service answers on a loopback address only, not on {host}",
        code="no_keys",
        hint="set ENGINESMITH_API_KEYS, make one with `enginesmith keys create`, or use --host 127.0.0.1",
    )


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_absent(settings: Settings) -> bool:
    """Whether the artifact store is a folder that nobody has made yet."""
    parts = urlsplit(settings.artifacts_url)
    return parts.scheme == "file" and not Path(unquote(parts.path)).is_dir()


def _any_made(settings: Settings) -> bool:
    if is_absent(settings):
        return False  # without making the folder of a service that is refused
    return read_keys(Artifacts(settings.artifacts_url, patience_s=10)).any


def _place(key: Key) -> str:
    return f"keys/{key.id}.json"
