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


class Journal(BaseJournalBackend):
    """Entries are numbered from 0, and none is ever changed. Every call may raise Unavailable."""

    def __init__(self, redis: PatientRedis, prefix: str) -> None:
        self._redis: Any = redis
        self._prefix = prefix
        self._append = redis.register_script(_APPEND)

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
