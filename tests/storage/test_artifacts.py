"""The artifact store: what it keeps, and that what breaks off leaves nothing."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from running import until

from app.errors import NotFound, TooLarge
from app.settings import Settings
from app.storage.artifacts import PART, Artifacts

Left = Callable[[], list[str]]
# What people call their files.
ODD = ["é ü", "x+y", "%41%2F", "#?&=", "'\"", "*[1]", "b\\c", "{x}|^`~", "日本", "..x", ".hidden", "a" * 200]


async def chunks(size: int, each: int = 100_000, fail: BaseException | None = None) -> AsyncIterator[bytes]:
    for at in range(0, size, each):
        yield b"x" * min(each, size - at)
    if fail:
        raise fail


@pytest.mark.parametrize("size", [0, 1, PART, 2 * PART + 17])
async def test_stage_hashes_while_it_writes(artifacts: Artifacts, size: int) -> None:
    staged = await artifacts.stage(chunks(size), filename="net.pt", limit=1 << 30)
    assert (staged.bytes, staged.sha256) == (size, hashlib.sha256(b"x" * size).hexdigest())
    assert artifacts.get_bytes(staged.key) == b"x" * size
    assert artifacts.size(staged.key) == size


async def test_an_upload_over_the_limit_leaves_nothing(artifacts: Artifacts, left: Left) -> None:
    with pytest.raises(TooLarge):
        await artifacts.stage(chunks(3 * PART), filename="net.pt", limit=2 * PART)
    assert left() == []


async def test_an_upload_that_breaks_off_leaves_nothing(artifacts: Artifacts, left: Left) -> None:
    with pytest.raises(ConnectionResetError):
        await artifacts.stage(chunks(3 * PART, fail=ConnectionResetError()), filename="net.pt", limit=1 << 30)
    assert left() == []


async def test_an_upload_that_is_cancelled_leaves_nothing(artifacts: Artifacts, left: Left) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * (2 * PART)
        await asyncio.sleep(60)

    task = asyncio.create_task(artifacts.stage(endless(), filename="net.pt", limit=1 << 30))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left() == []


def test_create_refuses_to_replace(artifacts: Artifacts) -> None:
    artifacts.put_bytes(b"1", "a/b.json", create=True)
    with pytest.raises(FileExistsError):
        artifacts.put_bytes(b"2", "a/b.json", create=True)
    assert artifacts.get_bytes("a/b.json") == b"1"


@pytest.mark.parametrize("size", [0, 1, PART, 5 * PART + 17])
def test_files_go_in_and_out(artifacts: Artifacts, tmp_path: Path, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "in").write_bytes(data)
    assert artifacts.put_file(tmp_path / "in", "x/y") == (hashlib.sha256(data).hexdigest(), size)
    assert artifacts.fetch("x/y", tmp_path / "deep" / "out").read_bytes() == data
    artifacts.put_bytes(data, "x/z")
    artifacts.copy("x/z", "x/w")
    assert artifacts.get_bytes("x/w") == data


def test_a_file_that_cannot_be_read_to_its_end_leaves_nothing(
    artifacts: Artifacts, left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(b"x" * (3 * PART))

    class Broken:
        def __init__(self, _: bytes) -> None:
            self.parts = 0

        def update(self, _: bytes) -> None:
            self.parts += 1
            if self.parts == 3:
                raise ValueError("a bad sector")

    monkeypatch.setattr("app.storage.artifacts.hashlib.sha256", lambda data=b"": Broken(data))
    with pytest.raises(ValueError, match="bad sector"):
        artifacts.put_file(tmp_path / "in", "x/y")
    until(lambda: left() == [])


def test_odd_names_are_kept(artifacts: Artifacts) -> None:
    keys = [f"staging/{n}/{name}" for n, name in enumerate(ODD)]
    for key in keys:
        artifacts.put_bytes(key.encode(), key, create=True)
    assert sorted(artifacts.keys("staging")) == sorted(keys)
    assert [artifacts.get_bytes(key).decode() for key in keys] == keys
    artifacts.delete(*keys)
    assert list(artifacts.keys("")) == []


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
    with pytest.raises(NotFound):
        artifacts.size("nope")
    with pytest.raises(NotFound):
        artifacts.copy("nope", "x")
    artifacts.delete("nope")
    artifacts.delete(*(f"nope/{n}" for n in range(1001)))
    assert (list(artifacts.keys("nope")), artifacts.folders("nope")) == ([], [])


def test_listing_and_deleting_by_prefix(artifacts: Artifacts) -> None:
    for key in ("m/a/1", "m/a/2", "m/b/1", "mm/c"):
        artifacts.put_bytes(b"", key)
    assert sorted(artifacts.keys("m")) == ["m/a/1", "m/a/2", "m/b/1"]
    assert artifacts.folders("m") == ["a", "b"]
    artifacts.delete_all("m/a")
    assert sorted(artifacts.keys("m")) == ["m/b/1"]


def test_a_job_leaves_no_empty_folders(settings: Settings) -> None:
    """A search of a thousand trials would leave two thousand."""
    artifacts = Artifacts(settings.artifacts_url)
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
