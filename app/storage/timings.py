"""What builds have measured of kernels, by kind of GPU: objects named by their content, the current one in Redis."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import datetime
from typing import Any

from app.errors import NotFound
from app.settings import MiB
from app.storage.artifacts import Artifacts
from app.storage.redis import PatientRedis

PLACE = "timing"
# Beyond this it is begun anew: most of it is then of networks that nobody builds any more.
MOST = 256 * MiB
_CURRENT = "es:timings"  # kind of GPU → sha256
# KEYS: the names. ARGV: kind of GPU, the name that has to be there ("": none), the next ("": none). Answers 1 when it
# is done, also to a call that is repeated because its answer was lost.
_NAME = """
local named = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if named == ARGV[3] then return 1 end
if named ~= ARGV[2] then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
return 1
"""


class Timings:
    """Those of one kind of GPU. of: tells it from others. `read` and `write` raise what the store and Redis raise."""

    def __init__(self, artifacts: Artifacts, redis: PatientRedis, of: str) -> None:
        self._artifacts, self._of = artifacts, of
        self._redis: Any = redis
        self._name = redis.register_script(_NAME)
        self._seen = ""  # the name of what was read last

    def read(self) -> bytes:
        """What is kept now; nothing where there is none, or it is damaged."""
        for _ in range(2):  # one that has just been replaced is gone: then there is another
            self._seen = str(self._redis.hget(_CURRENT, self._of) or "")
            if not self._seen:
                break
            with contextlib.suppress(NotFound):
                found = self._artifacts.get_bytes(_key(self._seen))
                return found if hashlib.sha256(found).hexdigest() == self._seen else b""
        return b""

    def write(self, measured: bytes) -> bool:
        """Keeps this in the place of what was read. False, and nothing is changed, where another is there by now."""
        name = hashlib.sha256(measured).hexdigest() if len(measured) <= MOST else ""
        if name:
            # Also where it is there already: it may be damaged, and is to be as young as its name.
            self._artifacts.put_bytes(measured, _key(name))
        if not self._name(keys=[_CURRENT], args=[self._of, self._seen, name]):
            return False
        if self._seen and self._seen not in self._redis.hvals(_CURRENT):  # another kind of GPU may have the very same
            self._artifacts.delete(_key(self._seen))
        self._seen = name
        return True


def sweep_timings(artifacts: Artifacts, redis: Any, before: datetime) -> int:
    """Deletes what has no name any more; how many objects. before: what was written later is left."""
    entries = list(artifacts.entries(PLACE))
    named = {_key(str(name)) for name in redis.hvals(_CURRENT)} if entries else set()
    gone = [entry.key for entry in entries if entry.at < before and entry.key not in named]
    artifacts.delete(*gone)
    return len(gone)


def _key(name: str) -> str:
    return f"{PLACE}/{name}"
