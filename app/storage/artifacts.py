"""The artifact store: immutable objects under string keys, in a local folder or an S3 bucket, through one class."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from app.errors import InsufficientStorage, NotFound, Problem, TooLarge, Unavailable

PART = 5 * 1024 * 1024  # S3's smallest part
PARTS_IN_FLIGHT = 2
_END = object()


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
    """Puts, gets, lists and deletes objects. Methods are synchronous unless they stream for the app."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store: ObjectStore = LocalStore(self._folder)
        else:
            self._store = from_url(url)
        self.url = url

    async def stage(self, chunks: AsyncIterator[bytes], *, filename: str, limit: int) -> Staged:
        """Streams an upload to `staging/{id}/{filename}`, hashing while it writes; a few parts are in memory at a time.

        Raises TooLarge past `limit` bytes, InsufficientStorage on a full disk, and whatever `chunks` raises.
        After any error or cancellation nothing of it is left.
        """
        key = f"staging/{uuid.uuid4().hex}/{filename}"
        digest, size = hashlib.sha256(), 0
        # The writer takes from a queue, so that a cancelled reader can tell it to abort instead of dying with it.
        pipe: asyncio.Queue[object] = asyncio.Queue(maxsize=2)
        writer = asyncio.ensure_future(self._write(key, pipe))
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

    async def _write(self, key: str, pipe: asyncio.Queue[object]) -> None:
        async def parts() -> AsyncIterator[bytes]:
            held = bytearray()
            while (item := await pipe.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                held += cast(bytes, item)
                if len(held) >= PART:
                    yield bytes(held)
                    held.clear()
            if held:
                yield bytes(held)

        with _translated(key):
            await obstore.put_async(
                self._store, key, parts(), use_multipart=True, chunk_size=PART, max_concurrency=PARTS_IN_FLIGHT
            )

    async def _abort(self, key: str, pipe: asyncio.Queue[object], writer: asyncio.Future[None]) -> None:
        while not writer.done():
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    pipe.get_nowait()
            pipe.put_nowait(ConnectionAbortedError("the upload was given up"))
            await asyncio.wait([writer], timeout=0.2)
        with contextlib.suppress(BaseException):
            writer.exception()
        await asyncio.to_thread(self._discard, key)

    def _discard(self, key: str) -> None:
        self.delete(key)
        if self._folder is not None:  # the library removes an unfinished file in a thread that nobody can wait for
            shutil.rmtree((self._folder / key).parent, ignore_errors=True)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Streams the bytes start…end (end excluded) of an object. Raises NotFound."""
        with _translated(key):
            stop = await asyncio.to_thread(self.size, key) if end is None else end
            # Ranges of a few MiB each: a stream of obstore's would hold the file open while a slow client reads.
            for at in range(start, stop, PART):
                yield bytes(await obstore.get_range_async(self._store, key, start=at, end=min(at + PART, stop)))

    def size(self, key: str) -> int:
        """Bytes. Raises NotFound."""
        with _translated(key):
            return int(obstore.head(self._store, key)["size"])

    def put_bytes(self, data: bytes, key: str, *, create: bool = False) -> None:
        """Writes an object at once. create: raises FileExistsError instead of replacing one."""
        with _translated(key):
            obstore.put(self._store, key, data, mode="create" if create else "overwrite", use_multipart=False)

    def put_file(self, path: Path, key: str) -> tuple[str, int]:
        """Uploads a file; gives (sha256 in hex, bytes). A failure leaves nothing behind."""
        digest = hashlib.sha256()
        size = 0

        def parts() -> Iterator[bytes]:
            nonlocal size
            with path.open("rb") as file:
                while chunk := file.read(PART):
                    digest.update(chunk)
                    size += len(chunk)
                    yield chunk

        with _translated(key):
            obstore.put(self._store, key, parts(), use_multipart=True, chunk_size=PART, max_concurrency=PARTS_IN_FLIGHT)
        return digest.hexdigest(), size

    def copy(self, key: str, to: str) -> None:
        """A second object with the same bytes. Raises NotFound."""
        with _translated(key):
            obstore.copy(self._store, key, to)

    def get_bytes(self, key: str) -> bytes:
        """Raises NotFound."""
        with _translated(key):
            return bytes(obstore.get(self._store, key).bytes())

    def fetch(self, key: str, to: Path) -> Path:
        """Streams an object into a file. Raises NotFound."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with _translated(key), to.open("wb") as file:
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=PART):
                file.write(chunk)
        return to

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key below a prefix (whole path segments)."""
        for key, _, _ in self.entries(prefix):
            yield key

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Everything below a prefix."""
        with _translated(prefix):
            for page in obstore.list(self._store, prefix=prefix):
                for meta in page:
                    yield Entry(meta["path"], meta["last_modified"], meta["size"])

    def folders(self, prefix: str) -> list[str]:
        """The names one level below a prefix."""
        with _translated(prefix):
            found = obstore.list_with_delimiter(self._store, prefix)["common_prefixes"]
        return [p.rstrip("/").rsplit("/", 1)[-1] for p in found]

    def delete(self, *keys: str) -> None:
        """Missing ones are fine."""
        for key in keys:
            with contextlib.suppress(NotFound), _translated(key):
                obstore.delete(self._store, key)
            if self._folder is not None and key.startswith(("staging/", "checkpoints/", "trials/")):
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


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    """The store's errors in our vocabulary."""
    try:
        yield
    except Problem:
        raise
    except (NotFoundError, FileNotFoundError):
        raise NotFound(f"no object {key!r} in the artifact store") from None
    except (AlreadyExistsError, FileExistsError):
        raise FileExistsError(key) from None
    except (BaseError, OSError) as error:
        text = str(error)
        full = getattr(error, "errno", None) in (28, 122) or os.strerror(28) in text or "StorageFull" in text
        if full:
            raise InsufficientStorage("the artifact store is full", hint="free some space, then try again") from error
        if isinstance(error, ConnectionAbortedError):
            raise
        raise Unavailable(f"the artifact store failed: {type(error).__name__}", hint="look at the log") from error
