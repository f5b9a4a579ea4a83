"""The artifact store: what it keeps, and that what breaks off leaves nothing."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.errors import NotFound, TooLarge
from app.storage.artifacts import PART, Artifacts


async def chunks(size: int, each: int = 100_000, fail: BaseException | None = None) -> AsyncIterator[bytes]:
    for at in range(0, size, each):
        yield b"x" * min(each, size - at)
    if fail:
        raise fail


def left(artifacts: Artifacts) -> list[Path]:
    return [p for p in Path(artifacts.url.removeprefix("file://")).rglob("*") if p.is_file()]


@pytest.mark.parametrize("size", [0, 1, PART, 2 * PART + 17])
async def test_stage_hashes_while_it_writes(artifacts: Artifacts, size: int) -> None:
    staged = await artifacts.stage(chunks(size), filename="net.pt", limit=1 << 30)
    assert (staged.bytes, staged.sha256) == (size, hashlib.sha256(b"x" * size).hexdigest())
    assert artifacts.get_bytes(staged.key) == b"x" * size
    assert artifacts.size(staged.key) == size


async def test_an_upload_over_the_limit_leaves_nothing(artifacts: Artifacts) -> None:
    with pytest.raises(TooLarge):
        await artifacts.stage(chunks(3 * PART), filename="net.pt", limit=2 * PART)
    assert left(artifacts) == []


async def test_an_upload_that_breaks_off_leaves_nothing(artifacts: Artifacts) -> None:
    with pytest.raises(ConnectionResetError):
        await artifacts.stage(chunks(3 * PART, fail=ConnectionResetError()), filename="net.pt", limit=1 << 30)
    assert left(artifacts) == []


async def test_an_upload_that_is_cancelled_leaves_nothing(artifacts: Artifacts) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * (2 * PART)
        await asyncio.sleep(60)

    task = asyncio.create_task(artifacts.stage(endless(), filename="net.pt", limit=1 << 30))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(artifacts) == []


def test_create_refuses_to_replace(artifacts: Artifacts) -> None:
    artifacts.put_bytes(b"1", "a/b.json", create=True)
    with pytest.raises(FileExistsError):
        artifacts.put_bytes(b"2", "a/b.json", create=True)
    assert artifacts.get_bytes("a/b.json") == b"1"


def test_files_go_in_and_out(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc" * PART)
    sha256, size = artifacts.put_file(tmp_path / "in", "x/y")
    out = artifacts.fetch("x/y", tmp_path / "deep" / "out")
    assert hashlib.sha256(out.read_bytes()).hexdigest() == sha256
    assert size == 3 * PART


async def test_read_gives_ranges(artifacts: Artifacts) -> None:
    data = bytes(range(256)) * (PART // 100)
    artifacts.put_bytes(data, "r")
    assert b"".join([c async for c in artifacts.read("r")]) == data
    assert b"".join([c async for c in artifacts.read("r", 100, PART + 300)]) == data[100 : PART + 300]


def test_what_is_not_there_is_not_found(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        artifacts.get_bytes("nope")
    with pytest.raises(NotFound):
        artifacts.fetch("nope", tmp_path / "x")
    artifacts.delete("nope")


def test_listing_and_deleting_by_prefix(artifacts: Artifacts) -> None:
    for key in ("m/a/1", "m/a/2", "m/b/1", "mm/c"):
        artifacts.put_bytes(b"", key)
    assert sorted(artifacts.keys("m")) == ["m/a/1", "m/a/2", "m/b/1"]
    assert artifacts.folders("m") == ["a", "b"]
    artifacts.delete_all("m/a")
    assert sorted(artifacts.keys("m")) == ["m/b/1"]


def test_a_job_leaves_no_empty_folders(artifacts: Artifacts) -> None:
    """A search of a thousand trials would leave two thousand."""
    root = Path(artifacts.url.removeprefix("file://"))
    for key in ("checkpoints/job-1/0-train/last", "checkpoints/job-1/last", "checkpoints/job-2/last", "trials/k/a/f"):
        artifacts.put_bytes(b"x", key)
    artifacts.delete("checkpoints/job-1/last")
    assert artifacts.get_bytes("checkpoints/job-1/0-train/last") == b"x"
    artifacts.delete_all("checkpoints/job-1")
    artifacts.delete_all("trials/k")
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_dir() and p.parent != root) == [
        "checkpoints/job-2"
    ]
