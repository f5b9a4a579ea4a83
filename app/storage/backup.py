"""What Redis holds and the artifact store does not, as one file: jobs with their events and curves, searches, what
idempotency keys stand for, and what webhooks have not been told yet.

The file is gzip over JSON lines: a head, a line for every key with its type, value and milliseconds left, and an end
that says how many there were. It is readable, and fits any Redis or Valkey, whatever its version.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from app.domain.records import ENDED, now
from app.errors import Conflict, Unprocessable
from app.storage import encoding, trials
from app.storage.catalog import Catalog

KEPT = ("es:job:", "es:jobs", "es:trials", "es:study:", "es:searches:", "es:idempotency:", "es:webhook:")
# The store has it, or it is of the moment: leases, who is alive, what has just been missed.
NOT_KEPT = (
    "es:model:", "es:models", "es:dataset:", "es:datasets", "es:evaluations:", "es:deployment", "es:webhooks",
    "es:timings", "es:remembers", "es:ended", "es:keys:", "es:limit:", "es:lease:", "es:worker:", "es:processes:",
    "es:replica:", "es:held:", "es:missing:",
)  # fmt: skip
_FORMAT = 1
_BATCH = 500


def backup(catalog: Catalog, to: Path) -> int:
    """Writes the file, whole or not at all; says how many keys. The service may go on meanwhile."""
    part = to.with_name(f"{to.name}.{os.getpid()}.part")
    try:
        # Nobody else's to read from its first byte: specs may hold what is nobody's business.
        opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(opened, "wb") as raw:
            count = write(catalog, raw)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)
    return count


def write(catalog: Catalog, raw: IO[bytes]) -> int:
    """The same into what is open; one that is cut off lacks its end, and is not restored."""
    redis: Any = catalog.redis
    count = 0
    with gzip.open(raw, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"enginesmith_backup": _FORMAT, "made_at": now()}) + "\n")
        for key in redis.scan_iter(match="es:*", count=_BATCH):
            if key.startswith(KEPT) and (line := _line(redis, key)) is not None:
                file.write(json.dumps(line) + "\n")
                count += 1
        file.write(json.dumps({"end": count}) + "\n")
    return count


def restore(catalog: Catalog, source: Path, *, replace: bool = False) -> int:
    """Reads it all before it writes anything; says how many keys. Raises Unprocessable for a file that is none of ours,
    or not whole; Conflict where there are jobs already, unless they are to be replaced.

    What was running is started again by the reaper, from its checkpoint where there is one."""
    count = sum(1 for _ in _lines(source))
    redis: Any = catalog.redis
    if redis.exists("es:jobs") and not replace:
        raise Conflict(
            "this Redis holds jobs already",
            code="not_empty",
            hint="--replace forgets them, and takes those of the file",
        )
    if replace:
        for key in [k for k in redis.scan_iter(match="es:*", count=_BATCH) if k.startswith(KEPT)]:
            redis.delete(key)
    for line in _lines(source):
        _put(redis, line)
    _settle(redis)
    return count


def _line(redis: Any, key: str) -> dict[str, Any] | None:
    """None for one that has gone meanwhile."""
    kind = redis.type(key)
    readers: dict[str, Callable[[], Any]] = {
        "string": lambda: redis.get(key),
        "hash": lambda: redis.hgetall(key),
        "set": lambda: sorted(redis.smembers(key)),
        "zset": lambda: redis.zrange(key, 0, -1, withscores=True),
        "list": lambda: redis.lrange(key, 0, -1),
        "stream": lambda: redis.xrange(key),
    }
    value = readers[kind]() if kind in readers else None
    left = redis.pttl(key)
    return {"key": key, "type": kind, "value": value, "left_ms": left if left > 0 else None} if value else None


def _put(redis: Any, line: dict[str, Any]) -> None:
    key, kind, value = line["key"], line["type"], line["value"]
    with redis.pipeline(transaction=True) as together:
        together.delete(key)
        if kind == "string":
            together.set(key, value)
        elif kind == "hash":
            together.hset(key, mapping=value)
        elif kind == "set":
            together.sadd(key, *value)
        elif kind == "zset":
            together.zadd(key, dict(value))
        elif kind == "list":
            for at in range(0, len(value), _BATCH):
                together.rpush(key, *value[at : at + _BATCH])
        else:
            for id, fields in value:
                together.xadd(key, fields, id=id)
        if line["left_ms"] is not None:
            together.pexpire(key, line["left_ms"])
        together.execute()


def _settle(redis: Any) -> None:
    """Jobs came and moved while the file was written: which there are, and which are open, is told by themselves."""
    for key in redis.scan_iter(match="es:job:*", count=_BATCH, _type="hash"):
        status, parent, created_at = redis.hmget(key, "status", "parent", "created_at")
        if status is None:
            continue
        id = key.removeprefix("es:job:")
        if created_at is not None:
            at = {id: encoding.millis(json.loads(created_at))}
            above = json.loads(parent) if parent else None
            for place in (trials.ALL, trials.of_parent(above)) if above else ("es:jobs",):
                redis.zadd(place, at)
        change: Any = redis.srem if status in ENDED else redis.sadd
        change("es:jobs:open", id)
        if parent and (above := json.loads(parent)):
            change(f"es:job:{above}:open", id)


def _lines(source: Path) -> Iterator[dict[str, Any]]:
    """Raises Unprocessable, at the end for one that is cut off."""
    try:
        with gzip.open(source, "rt", encoding="utf-8") as file:
            head = json.loads(file.readline() or "null")
            if not isinstance(head, dict) or head.get("enginesmith_backup") != _FORMAT:
                raise ValueError("its first line is not ours")
            for count, text in enumerate(file):
                line = json.loads(text)
                if "end" in line:
                    if line["end"] != count:
                        raise ValueError(f"{line['end']} keys were written, {count} are there")
                    return
                if not str(line["key"]).startswith(KEPT):
                    raise ValueError(f"{line['key']} is no key of a backup")
                yield line
            raise ValueError("its end is missing")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise Unprocessable(
            f"{source} is no whole backup: {error}", code="bad_backup", hint="enginesmith backup FILE writes one"
        ) from None
