"""The artifact store: immutable objects under string keys, in a local folder or an S3 bucket, through one class."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, ObjectStore, from_url

from app.errors import InsufficientStorage, NotFound, Problem, TooLarge, Unavailable

log = logging.getLogger("enginesmith.artifacts")
PART = 5 * 1024 * 1024  # S3's smallest part
PARTS = 9000  # S3 takes 10,000 of one object
PARTS_IN_FLIGHT = 2
RANGE = 4 * PART  # what is fetched at once of a large object
PATIENCE_S = 90.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
_END = object()
T = TypeVar("T")


class Staged(NamedTuple):
    """An upload as it lies in the store. sha256 in hex."""

    key: str
    sha256: str
    bytes: int


class Entry(NamedTuple):
    """at: the time of its writing."""

    key: str
    at: datetime
    bytes: int


class Artifacts:
    """Puts, gets, lists and deletes objects. Methods are synchronous unless they stream for the app.

    A bucket: where it is, and as whom it is asked, obstore reads in AWS_*. patience_s: for about how long a server that
    fails, or is gone, is tried again before Unavailable is raised; one that takes a request and says nothing costs the
    client's timeout (AWS_TIMEOUT, 30 s) on top.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store: ObjectStore = LocalStore(self._folder)
        else:
            # Time bounds it, not how often. No client_options: they would replace those of the environment.
            waits = {"init_backoff": timedelta(seconds=FIRST_WAIT_S), "max_backoff": timedelta(seconds=LONGEST_WAIT_S)}
            self._store = from_url(
                url,
                retry_config={
                    "max_retries": 10_000,
                    "retry_timeout": timedelta(seconds=patience_s),
                    "backoff": cast("obstore.store.BackoffConfig", waits),
                },
            )
        self._patience_s = patience_s
        self.url = url

    @property
    def folder(self) -> Path | None:
        """Where it lies; None for a bucket."""
        return self._folder

    async def stage(self, chunks: AsyncIterator[bytes], *, filename: str, limit: int) -> Staged:
        """Streams an upload to `staging/{id}/{filename}`, hashing while it writes; a few parts are in memory at a time.

        Raises TooLarge past `limit` bytes, InsufficientStorage on a full disk, and whatever `chunks` raises.
        After any error or cancellation nothing of it is left.
        """
        key = f"staging/{uuid.uuid4().hex}/{filename}"
        digest, size = hashlib.sha256(), 0
        # The writer takes from a queue, so that a cancelled reader can tell it to abort instead of dying with it.
        pipe: asyncio.Queue[object] = asyncio.Queue(maxsize=2)
        writer = asyncio.ensure_future(self._write(key, pipe, _part(limit)))
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise TooLarge(
                        f"the upload is larger than {limit} bytes", hint="raise ENGINESMITH_MAX_UPLOAD_BYTES"
                    )
                digest.update(chunk)
                await _either(pipe.put(bytes(chunk)), writer)
            await _either(pipe.put(_END), writer)
            await asyncio.shield(writer)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._abort(key, pipe, writer)))
            raise
        return Staged(key, digest.hexdigest(), size)

    async def _write(self, key: str, pipe: asyncio.Queue[object], part: int) -> None:
        size = -1  # until all of it is there

        async def parts() -> AsyncIterator[bytes]:
            nonlocal size
            held, total = bytearray(), 0
            while (item := await pipe.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                held += cast(bytes, item)
                total += len(cast(bytes, item))
                if len(held) >= part:
                    yield bytes(held)
                    held.clear()
            if held:
                yield bytes(held)
            size = total

        with _translated(key, writes=True):
            try:
                await obstore.put_async(
                    self._store, key, parts(), use_multipart=True, chunk_size=part, max_concurrency=PARTS_IN_FLIGHT
                )
            except (BaseError, FileNotFoundError):
                # It may be complete, and the answer that said so was lost.
                if self._folder is not None or size < 0 or await asyncio.to_thread(self._found, key) != size:
                    raise

    async def _abort(self, key: str, pipe: asyncio.Queue[object], writer: asyncio.Future[None]) -> None:
        while not writer.done():
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    pipe.get_nowait()
            pipe.put_nowait(ConnectionAbortedError("the upload was given up"))
            await asyncio.wait([writer], timeout=0.2)
        wrote = not writer.cancelled() and writer.exception() is None
        await asyncio.to_thread(self._discard, key, wrote)

    def _discard(self, key: str, wrote: bool) -> None:
        if wrote:
            with contextlib.suppress(Problem):  # what ended the upload is told; the sweeper comes by later
                self.delete(key)
        if self._folder is not None:  # the library removes an unfinished file in a thread that nobody can wait for
            shutil.rmtree((self._folder / key).parent, ignore_errors=True)

    def ping(self) -> None:
        """Raises Unavailable where the store does not answer."""
        if self._folder is not None and not self._folder.is_dir():
            raise Unavailable("the artifact store's folder is not there")
        with contextlib.suppress(NotFound):
            self.size("nothing")

    def _found(self, key: str) -> int | None:
        with contextlib.suppress(Problem):
            return self.size(key)
        return None

    def _patiently(self, key: str, call: Callable[[], T], *, writes: bool = False) -> T:
        """Calls it, again where the line to the server broke. It can be repeated without harm."""
        deadline, wait = time.monotonic() + self._patience_s, FIRST_WAIT_S
        with _translated(key, writes=writes):
            while True:
                try:
                    return call()
                except (BaseError, OSError) as error:
                    if self._folder is not None or not _interrupted(error) or time.monotonic() + wait > deadline:
                        raise
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Streams the bytes start…end (end excluded) of an object. Raises NotFound."""
        with _translated(key):
            stop = await asyncio.to_thread(self.size, key) if end is None else end
            # Ranges of a few MiB each: a stream of obstore's would hold the file open while a slow client reads.
            for at in range(start, stop, PART):
                yield bytes(await obstore.get_range_async(self._store, key, start=at, end=min(at + PART, stop)))

    def size(self, key: str) -> int:
        """Bytes. Raises NotFound."""
        return self._patiently(key, lambda: int(obstore.head(self._store, key)["size"]))

    def put_bytes(self, data: bytes, key: str, *, create: bool = False) -> None:
        """Writes an object at once. create: raises FileExistsError instead of replacing one. In a bucket the very same
        bytes are no other object: they are what a call wrote whose answer was lost."""
        if create:
            self._patiently(key, lambda: self._create(data, key), writes=True)
        elif len(data) <= RANGE:
            self._patiently(key, lambda: obstore.put(self._store, key, data, use_multipart=False), writes=True)
        else:
            self._put_parts(key, lambda: (data[at : at + PART] for at in range(0, len(data), PART)), len(data))

    def _create(self, data: bytes, key: str) -> None:
        try:
            obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            if self._folder is not None:
                raise
            try:
                found = bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:  # two at once: S3 lets neither in, and asks for another try
                raise _Again(f"{key} was being written") from None
            if found != data:
                raise

    def put_file(self, path: Path, key: str) -> tuple[str, int]:
        """Uploads a file; gives (sha256 in hex, bytes). A failure leaves nothing behind."""
        digest, read = hashlib.sha256(), 0
        total = path.stat().st_size

        def chunks() -> Iterator[bytes]:
            nonlocal digest, read
            digest, read = hashlib.sha256(), 0
            with path.open("rb") as file:
                while chunk := file.read(_part(total)):
                    digest.update(chunk)
                    read += len(chunk)
                    yield chunk

        self._put_parts(key, chunks, total)
        return digest.hexdigest(), read

    def _put_parts(self, key: str, chunks: Callable[[], Iterator[bytes]], total: int) -> None:
        def put() -> None:
            if self._folder is None and total <= PART:
                obstore.put(self._store, key, b"".join(chunks()), use_multipart=False)
                return
            part = _part(total)
            obstore.put(
                self._store, key, chunks(), use_multipart=True, chunk_size=part, max_concurrency=PARTS_IN_FLIGHT
            )

        self._patiently(key, put, writes=True)

    def copy(self, key: str, to: str) -> None:
        """A second object with the same bytes. Raises NotFound."""
        self._patiently(key, lambda: obstore.copy(self._store, key, to))

    def get_bytes(self, key: str) -> bytes:
        """Raises NotFound."""
        return self._patiently(key, lambda: bytes(obstore.get(self._store, key).bytes()))

    def fetch(self, key: str, to: Path) -> Path:
        """Streams an object into a file. Raises NotFound."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with _translated(key), to.open("wb") as file:
            size, tag, first = self._patiently(key, lambda: self._begin(key))
            file.write(first)
            # A request each, tried again by itself: all of a large object takes longer than one may.
            for at in range(len(first), size, RANGE):
                file.write(self._patiently(key, partial(self._range, key, at, min(at + RANGE, size), tag)))
        return to

    def _begin(self, key: str) -> tuple[int, str | None, bytes]:
        """(its size, what tells it from another of that key, all of it if it is small, else nothing)."""
        found = obstore.get(self._store, key)
        size, tag = int(found.meta["size"]), found.meta["e_tag"]
        return size, tag, bytes(found.bytes()) if size <= PART else b""

    def _range(self, key: str, start: int, end: int, tag: str | None) -> bytes:
        options: obstore.GetOptions = {"range": (start, end)}
        return bytes(obstore.get(self._store, key, options=options | ({"if_match": tag} if tag else {})).bytes())

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key below a prefix (whole path segments)."""
        for key, _, _ in self.entries(prefix):
            yield key

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Everything below a prefix."""
        for meta in self._patiently(prefix, lambda: obstore.list(self._store, prefix=prefix).collect(), writes=True):
            yield Entry(meta["path"], meta["last_modified"], meta["size"])

    def folders(self, prefix: str) -> list[str]:
        """The names one level below a prefix."""
        found = self._patiently(prefix, lambda: obstore.list_with_delimiter(self._store, prefix), writes=True)
        return [p.rstrip("/").rsplit("/", 1)[-1] for p in found["common_prefixes"]]

    def delete(self, *keys: str) -> None:
        """Missing ones are fine. The first is gone before any other goes."""
        if self._folder is None:
            for some in (keys[:1], keys[1:]):
                if some:  # a thousand at once
                    self._patiently(some[0], partial(obstore.delete, self._store, some), writes=True)
            return
        for key in keys:
            with contextlib.suppress(NotFound), _translated(key):
                obstore.delete(self._store, key)
            if key.startswith(("staging/", "checkpoints/", "trials/")):
                with contextlib.suppress(OSError):  # not empty: others of the same job lie there
                    for place in list(PurePosixPath(key).parents)[:-2]:
                        (self._folder / place).rmdir()

    def delete_all(self, prefix: str) -> None:
        self.delete(*list(self.keys(prefix)))


async def _either(put: object, writer: asyncio.Future[None]) -> None:
    """Waits for the put, or raises what ended the writer first (a full disk)."""
    step = asyncio.ensure_future(cast("asyncio.Future[None]", put))
    try:
        await asyncio.wait([step, writer], return_when=asyncio.FIRST_COMPLETED)
        if writer.done():
            writer.result()
    finally:
        if not step.done():
            step.cancel()


class _Again(BaseError):
    """Nothing is wrong, and the same has to be asked once more."""


def _part(total: int) -> int:
    """The size of a part, of an object of at most so many bytes."""
    return max(PART, -(-total // PARTS))


def _interrupted(error: BaseException) -> bool:
    """Whether the line broke or an answer ended early, or one that was lost had said that an upload is complete.
    obstore repeats what it knows to be harmless: no deletion, no conditional put, and nothing after half an answer."""
    text = str(error)
    broke = "HTTP error" in text and "builder error" not in text  # that is a URL which cannot be
    return isinstance(error, _Again) or broke or "NoSuchUpload" in text


@contextlib.contextmanager
def _translated(key: str, *, writes: bool = False) -> Iterator[None]:
    """The store's errors in our vocabulary. writes: or lists: what is not found then is no object."""
    try:
        yield
    except Problem:
        raise
    except (AlreadyExistsError, FileExistsError):
        raise FileExistsError(key) from None
    except (BaseError, OSError) as error:
        is_missing, no_bucket = isinstance(error, NotFoundError | FileNotFoundError), "NoSuchBucket" in str(error)
        if is_missing and not writes and not no_bucket:
            raise NotFound(f"no object {key!r} in the artifact store") from None
        if isinstance(error, ConnectionAbortedError):
            raise
        raise _problem(error, is_missing or no_bucket) from error


def _problem(error: BaseError | OSError, no_bucket: bool) -> Problem:
    text = str(error)
    # A disk, MinIO, Ceph.
    full = (os.strerror(28), "StorageFull", "507 Insufficient Storage", "QuotaExceeded")
    if getattr(error, "errno", None) in (28, 122) or any(word in text for word in full):
        return InsufficientStorage("the artifact store is full", hint="free some space, then try again")
    log.warning("the artifact store failed: %s", (text.splitlines() or [""])[0])
    if no_bucket:
        return Unavailable("the artifact store's bucket is not there", hint="make it, or mend ENGINESMITH_STORE_URL")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return Unavailable("the artifact store refuses its credentials", hint="mend AWS_ACCESS_KEY_ID and its secret")
    if "builder error" in text and " http://" in text:  # reqwest's words for a scheme that is not allowed
        return Unavailable("the artifact store is named without TLS", hint="AWS_ALLOW_HTTP=true allows that")
    if isinstance(error, PreconditionError):
        return Unavailable("an object was replaced while it was read", hint="try again")
    if "status code: 5" in text or _interrupted(error):
        return Unavailable(
            "the artifact store does not answer", hint="try again in a few seconds", headers={"Retry-After": "5"}
        )
    return Unavailable(f"the artifact store failed: {type(error).__name__}", hint="look at the log")
