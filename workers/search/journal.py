"""Optuna's journal in the catalog's own Redis: the keys are those of its JournalRedisBackend, so that its tools can
read it; all that is new is read in one go, and a call that is repeated because its answer was lost writes once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from app.storage.redis import PatientRedis

_PAGE = 2000
# KEYS: the number of the last entry, the token of the last call. ARGV: prefix, token, then entries.
_APPEND = """
if redis.call('GET', KEYS[2]) == ARGV[2] then return 0 end
redis.call('SETNX', KEYS[1], -1)
for i = 3, #ARGV do
  redis.call('SET', ARGV[1] .. ':log:' .. string.format('%d', redis.call('INCR', KEYS[1])), ARGV[i])
end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


# KEYS: the number of the last entry. ARGV: prefix, what that number must be, then the entries in place of the old ones.
_REPLACE = """
local last = tonumber(redis.call('GET', KEYS[1]) or -1)
if last ~= tonumber(ARGV[2]) then return 0 end
for n = 0, last do redis.call('DEL', ARGV[1] .. ':log:' .. string.format('%d', n)) end
for i = 3, #ARGV do redis.call('SET', ARGV[1] .. ':log:' .. string.format('%d', i - 3), ARGV[i]) end
redis.call('SET', KEYS[1], #ARGV - 3)
return 1
"""


class Journal(BaseJournalBackend):
    """Entries are numbered from 0, and none is changed but by `replace`. Every call may raise Unavailable."""

    def __init__(self, redis: PatientRedis, prefix: str) -> None:
        self._redis: Any = redis
        self._prefix = prefix
        self._append = redis.register_script(_APPEND)
        self._replace = redis.register_script(_REPLACE)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        last = self._redis.get(f"{self._prefix}:log_number")
        numbers = range(log_number_from, int(last) + 1) if last is not None else range(0)
        for first in range(0, len(numbers), _PAGE):
            page = numbers[first : first + _PAGE]
            for text in self._redis.mget([f"{self._prefix}:log:{n}" for n in page]):
                if text is None:  # somebody is removing the journal
                    return
                yield json.loads(text)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        keys = [f"{self._prefix}:log_number", f"{self._prefix}:token"]
        self._append(keys=keys, args=[self._prefix, uuid.uuid4().hex, *(json.dumps(log) for log in logs)])

    def last(self) -> int:
        """The number of the last entry; -1 where there is none."""
        return int(self._redis.get(f"{self._prefix}:log_number") or -1)

    def replace(self, logs: list[dict[str, Any]], last: int) -> bool:
        """Exchanges all entries at once, unless the last one is not `last` any more: then it does nothing, and says so.
        Whoever has read the old ones must open the journal anew."""
        done = self._replace(
            keys=[f"{self._prefix}:log_number"], args=[self._prefix, last, *(json.dumps(log) for log in logs)]
        )
        return bool(done)


class Draft(BaseJournalBackend):
    """A journal in memory, to be put in place of one in Redis."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        yield from self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += json.loads(json.dumps(logs))
