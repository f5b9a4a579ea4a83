"""Who is let in: the keys of the settings, those of a file, and those that `enginesmith keys` made; watched, so that
what is made or revoked counts within a second."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping

from app.api.key_text import parse_file, parse_keys
from app.domain.keys import Key, digest_of, id_of
from app.errors import Forbidden, Overloaded, Problem, Unauthorized, Unprocessable
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.keys import look, loopback, read_keys
from app.storage.redis import PatientRedis

log = logging.getLogger("enginesmith.keys")
audit = logging.getLogger("enginesmith.audit")
LOOK_S = 0.4
READ_S = 30.0  # without a word from Redis, which may be away
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="enginesmith"'}


class Keyring:
    """`asks`: whether a request needs a key. It does not where none was ever made, on a loopback address."""

    def __init__(self, settings: Settings) -> None:
        """Raises Unprocessable for keys that make no sense."""
        self._settings = settings
        self._named = parse_keys(settings.api_keys)
        self._filed: tuple[Key, ...] = ()
        self._file_seen: tuple[int, int, int] | None = None
        self._made: dict[str, Key] = {}
        hosts = (settings.host, settings.manage_host or settings.host)
        self._always = bool(self._named or settings.api_keys_file or not all(map(loopback, hosts)))
        self.asks = self._always
        self._buckets: dict[str, _Bucket] = {}
        self._processes = 1
        self._seen: str | None = None
        self._read_at = -math.inf
        self._process = uuid.uuid4().hex
        self._read_file(first=True)

    def admit(self, wanted: str, authorization: bytes) -> Key | None:
        """The key that a request with this header Authorization came with; None where it needs none. wanted: the scope
        that it needs, or "any". Raises Unauthorized, Forbidden, Overloaded."""
        if not self.asks:
            return None
        key = self.known(wanted, authorization)
        self.allow(key, wanted)
        return key

    def known(self, wanted: str, authorization: bytes) -> Key:
        """Raises Unauthorized."""
        kind, _, text = authorization.decode("latin-1").partition(" ")
        token = text.strip()
        if kind.lower() != "bearer" or not token:
            raise Unauthorized(
                f"this needs a key{'' if wanted == 'any' else f' with the scope {wanted!r}'}",
                hint="send it as Authorization: Bearer KEY",
                headers=_CHALLENGE,
                code="no_key",
            )
        key = self._find(token)
        if key is None:
            raise Unauthorized("this key is not known here", headers=_CHALLENGE, code="unknown_key")
        return key

    def allow(self, key: Key, wanted: str) -> None:
        """Raises Forbidden, Overloaded."""
        if not key.may(wanted):
            raise Forbidden(
                f"this key lacks the scope {wanted!r}; it has {', '.join(key.scopes)}",
                hint="use another key, or have one made with that scope",
            )
        if key.limits.requests_per_second is not None:
            self._take_turn(key, key.limits.requests_per_second)

    def holds(self, key: Key | None) -> bool:
        """Whether a request that came with this key would be let in now: for answers that go on for long."""
        known = (*self._named, *self._filed, *self._made.values())
        return not self.asks or (key is not None and any(key.digest == of.digest for of in known))

    def _find(self, token: str) -> Key | None:
        digest, id = digest_of(token), id_of(token)
        made = self._made.get(id) if id is not None else None
        if made is not None and hmac.compare_digest(made.digest, digest):
            return made
        # Every one is compared, so that the time taken tells nothing about which one was nearly right.
        held = [key for key in (*self._named, *self._filed) if hmac.compare_digest(key.digest, digest)]
        return held[0] if held else None

    def _take_turn(self, key: Key, rate: float) -> None:
        """Raises Overloaded. Each process that answers HTTP gives out its share of the rate."""
        bucket = self._buckets.setdefault(key.digest, _Bucket())
        wait_s = bucket.take(time.monotonic(), rate / self._processes)
        if wait_s > 0:
            raise Overloaded(
                f"this key may send {rate:g} requests a second",
                code="rate_limited",
                hint="send fewer, or have a key made that may send more",
                headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            )

    def shut(self) -> None:
        """Until it is known whether keys were made, nobody is let in without one."""
        self.asks = True

    def load(self, artifacts: Artifacts) -> None:
        """Reads those that were made: whoever has made one wants nobody let in without, the last one revoked or not.
        Raises Unavailable."""
        kept = read_keys(artifacts)
        for place in kept.damaged:
            log.error("the key in %s is damaged, and counts no more: make another", place)
        made = {key.id: key for key in kept.keys if key.id is not None and key.revoked_at is None}
        if self._read_at != -math.inf:
            _tell("made", made, but=self._made)
            _tell("revoked", self._made, but=made)
        self._made = made
        self.asks = self._always or kept.any
        known = {key.digest for key in (*self._named, *self._filed, *self._made.values())}
        self._buckets = {digest: bucket for digest, bucket in self._buckets.items() if digest in known}
        self._read_at = time.monotonic()

    def refresh(self, artifacts: Artifacts, redis: PatientRedis) -> None:
        """Looks whether anything has changed, and reads it if so."""
        self._read_file()
        changed = None
        with contextlib.suppress(Problem):  # Redis is away: what is known goes on to count
            changed, self._processes = look(redis, self._process)
        if (changed is not None and changed != self._seen) or time.monotonic() - self._read_at > READ_S:
            self.load(artifacts)
            self._seen = changed if changed is not None else self._seen

    async def watch(self, artifacts: Artifacts, redis: PatientRedis) -> None:
        """For as long as the process runs."""
        failing = False
        while True:
            try:
                await asyncio.to_thread(self.refresh, artifacts, redis)
                failing = False
            except Exception as error:
                if not failing:
                    log.warning("the keys could not be read, and those that are known go on to count: %s", error)
                failing = True
            await asyncio.sleep(LOOK_S)

    def _read_file(self, first: bool = False) -> None:
        path = self._settings.api_keys_file
        if path is None:
            return
        try:
            about = path.stat()
            seen = (about.st_ino, about.st_mtime_ns, about.st_size)
            if seen != self._file_seen:
                self._filed, self._file_seen = parse_file(path), seen
        except (OSError, Problem) as error:
            if first and isinstance(error, OSError):
                raise Unprocessable(
                    f"ENGINESMITH_API_KEYS_FILE cannot be read: {error.strerror}", code="bad_keys", hint="name a file"
                ) from None
            if first:
                raise
            if self._file_seen is not None:
                log.warning("%s cannot be read, and the keys that it had go on to count: %s", path.name, error)
            self._file_seen = None


def _tell(what: str, keys: Mapping[str, Key], *, but: Mapping[str, Key]) -> None:
    """An audit line for each that was changed where no request was seen: by `enginesmith keys`, or in the store."""
    for id in keys.keys() - but.keys():
        key = keys[id]
        audit.info("key %s was %s", id, what, extra={"key": id, "key_name": key.name, "scopes": list(key.scopes)})


class _Bucket:
    """A token bucket: a second's worth of requests at once, then as many as the rate gives."""

    __slots__ = ("at", "tokens")

    def __init__(self) -> None:
        self.at, self.tokens = -math.inf, 0.0

    def take(self, now: float, rate: float) -> float:
        """0, and one is taken; or the seconds until there is one. rate: a second."""
        most = max(1.0, rate)
        self.tokens = most if self.at == -math.inf else min(most, self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0


@contextlib.asynccontextmanager
async def watched(keyring: Keyring, artifacts: Artifacts, redis: PatientRedis) -> AsyncIterator[None]:
    """While inside, the keyring follows what is made and revoked."""
    try:
        await asyncio.to_thread(keyring.load, artifacts)
    except Problem as problem:
        keyring.shut()
        log.warning("the keys could not be read yet: %s", problem.detail)
    task = asyncio.create_task(keyring.watch(artifacts, redis))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
