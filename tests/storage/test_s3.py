"""A bucket whose server fails now and then, or is gone: what is tried again, and what is said of it."""

from __future__ import annotations

import hashlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from s3_server import S3, Proxy, Trouble

from app.errors import InsufficientStorage, Problem, Unavailable
from app.storage.artifacts import PART, Artifacts

Open = Callable[..., Artifacts]
BIG = bytes(range(256)) * (PART // 256) + b"the end"
BROKEN: list[Trouble] = ["500", "503", "drop", "lose", "cut"]


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What everything that is opened from now on is seen through."""
    with Proxy(s3).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_TIMEOUT", "1s")
        monkeypatch.setattr("app.storage.artifacts.FIRST_WAIT_S", 0.01)
        yield proxy


@pytest.fixture
def url(s3: S3) -> str:
    return f"s3://{s3.bucket()}/p"


async def chunks(data: bytes = BIG) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1_000_000):
        yield data[at : at + 1_000_000]


def first(trouble: Trouble, method: str = "", word: str = "") -> Callable[[int, str, str], Trouble | None]:
    """The first request of that kind meets trouble."""
    troubles: Iterator[Trouble] = iter([trouble])
    return lambda _, how, path: next(troubles, None) if method in how and word in path else None


async def test_a_server_that_fails_every_tenth_request_is_not_noticed(
    proxy: Proxy, s3: S3, url: str, tmp_path: Path
) -> None:
    artifacts = Artifacts(url)
    kinds: tuple[Trouble, ...] = ("500", "503", "drop", "lose")
    proxy.trouble = lambda number, *_: None if number % 10 else kinds[number // 10 % 4]
    (tmp_path / "in").write_bytes(BIG)
    for n in range(4):
        staged = await artifacts.stage(chunks(), filename="net.pt", limit=1 << 30)
        assert staged.sha256 == hashlib.sha256(BIG).hexdigest()
        assert b"".join([part async for part in artifacts.read(staged.key, 5)]) == BIG[5:]
        artifacts.copy(staged.key, f"m/{n}/copy")
        assert artifacts.put_file(tmp_path / "in", f"m/{n}/file") == (staged.sha256, staged.bytes)
        assert artifacts.fetch(f"m/{n}/file", tmp_path / "out").read_bytes() == BIG
        artifacts.put_bytes(b"%d" % n, f"m/{n}/manifest", create=True)
        with pytest.raises(FileExistsError):
            artifacts.put_bytes(b"another", f"m/{n}/manifest", create=True)
        artifacts.put_bytes(b"+", f"m/{n}/other")
        artifacts.put_bytes(b"++", f"m/{n}/other")
        assert (artifacts.get_bytes(f"m/{n}/manifest"), artifacts.size(f"m/{n}/other")) == (b"%d" % n, 2)
        assert sorted(artifacts.keys(f"m/{n}")) == [f"m/{n}/{name}" for name in ("copy", "file", "manifest", "other")]
        assert len(artifacts.folders("m")) == n + 1
        artifacts.delete(f"m/{n}/copy", f"m/{n}/other")
        artifacts.delete_all("staging")
    assert len(list(artifacts.keys(""))) == 8
    assert s3.parts(url.split("/")[2]) == []
    assert sum(trouble is not None for *_, trouble in proxy.seen) >= 10


DOES: dict[str, Callable[[Artifacts], object]] = {
    "create": lambda artifacts: artifacts.put_bytes(b"new", "new", create=True),
    "delete": lambda artifacts: artifacts.delete("old", "older", "none"),
    "list": lambda artifacts: list(artifacts.keys("")),
    "folders": lambda artifacts: artifacts.folders(""),
    "copy": lambda artifacts: artifacts.copy("old", "new"),
    "get": lambda artifacts: artifacts.get_bytes("big"),
}


@pytest.mark.parametrize("trouble", BROKEN)
@pytest.mark.parametrize("what", DOES)
def test_one_failure_is_not_noticed(proxy: Proxy, url: str, what: str, trouble: Trouble) -> None:
    artifacts = Artifacts(url)
    for key, data in {"old": b"old", "older": b"older", "big": BIG}.items():
        artifacts.put_bytes(data, key)
    expected = DOES[what](artifacts) if what in ("list", "folders", "get") else None
    proxy.trouble = first(trouble)
    assert DOES[what](artifacts) == expected
    assert [trouble for *_, trouble in proxy.seen if trouble] == [trouble]
    if what == "create":
        assert artifacts.get_bytes("new") == b"new"
    elif what == "delete":
        assert list(artifacts.keys("")) == ["big"]
    elif what == "copy":
        assert artifacts.get_bytes("new") == b"old"


@pytest.mark.parametrize(
    ("method", "word"), [("POST", "uploads"), ("PUT", "partNumber"), ("POST", "uploadId")], ids=["begin", "part", "end"]
)
@pytest.mark.parametrize("trouble", BROKEN)
async def test_one_failure_of_an_upload_in_parts_is_not_noticed(
    proxy: Proxy, url: str, s3: S3, tmp_path: Path, trouble: Trouble, method: str, word: str
) -> None:
    artifacts = Artifacts(url)
    (tmp_path / "in").write_bytes(BIG)
    proxy.trouble = first(trouble, method, word)
    artifacts.put_file(tmp_path / "in", "file")
    assert artifacts.get_bytes("file") == BIG
    if (trouble, word) != ("cut", "uploads"):  # then nobody knows what the upload is called, nor its length beforehand
        proxy.trouble = first(trouble, method, word)
        staged = await artifacts.stage(chunks(), filename="net.pt", limit=1 << 30)
        assert artifacts.get_bytes(staged.key) == BIG
        assert s3.parts(url.split("/")[2]) == []


async def test_a_server_that_breaks_down_during_an_upload(proxy: Proxy, url: str, s3: S3, tmp_path: Path) -> None:
    artifacts = Artifacts(url, patience_s=0.1)
    (tmp_path / "in").write_bytes(BIG)
    proxy.trouble = lambda _, method, path: "500" if "partNumber=2" in path else None
    with pytest.raises(Unavailable, match="does not answer"):
        artifacts.put_file(tmp_path / "in", "file")
    with pytest.raises(Unavailable, match="does not answer"):
        await artifacts.stage(chunks(), filename="net.pt", limit=1 << 30)
    assert s3.parts(url.split("/")[2]) == list(artifacts.keys("")) == []


@pytest.mark.parametrize("how", ["refused", "hang", "drop", "503"])
async def test_a_server_that_is_gone_is_unavailable_in_good_time(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Trouble
) -> None:
    if how == "refused":  # type: ignore[comparison-overlap]
        with socket.create_server(("127.0.0.1", 0)) as free:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    proxy.trouble = lambda *_: how
    artifacts = Artifacts(url, patience_s=0.1)
    calls: list[Callable[[], object]] = [
        *(lambda does=does: does(artifacts) for does in DOES.values()),  # type: ignore[misc]
        lambda: artifacts.put_bytes(b"", "x"),
        lambda: artifacts.fetch("x", tmp_path / "out"),
    ]
    began = time.monotonic()
    for call in calls if how == "refused" else calls[:2]:
        with pytest.raises(Unavailable, match="does not answer") as told:
            call()
        assert told.value.retryable
        assert told.value.headers["Retry-After"]
    with pytest.raises(Unavailable):
        await artifacts.stage(chunks(), filename="net.pt", limit=1 << 30)
    assert time.monotonic() - began < 60  # and not the minutes that the library would take


async def test_a_server_that_comes_back_is_waited_for(proxy: Proxy, url: str) -> None:
    artifacts = Artifacts(url)
    until = time.monotonic() + 0.4
    proxy.trouble = lambda *_: "drop" if time.monotonic() < until else None
    artifacts.put_bytes(b"1", "a", create=True)
    artifacts.delete("a")
    until = time.monotonic() + 0.4
    assert (await artifacts.stage(chunks(), filename="net.pt", limit=1 << 30)).bytes == len(BIG)


def test_of_two_at_once_one_wins(proxy: Proxy, url: str) -> None:
    """S3 may answer 409 to both: nothing is there then, and nobody has lost."""
    artifacts = Artifacts(url)
    proxy.trouble = first("409", "PUT")
    artifacts.put_bytes(b"1", "a", create=True)
    proxy.trouble = first("409", "PUT")
    with pytest.raises(FileExistsError):
        artifacts.put_bytes(b"2", "a", create=True)
    assert artifacts.get_bytes("a") == b"1"


@pytest.mark.parametrize(
    ("trouble", "problem", "told"),
    [("507", InsufficientStorage, "full"), ("403", Unavailable, "credentials")],
)
def test_what_is_wrong_is_told(proxy: Proxy, url: str, trouble: Trouble, problem: type[Problem], told: str) -> None:
    artifacts = Artifacts(url, patience_s=0.1)
    proxy.trouble = lambda *_: trouble
    for create in (False, True):
        with pytest.raises(problem, match=told):
            artifacts.put_bytes(b"", "x", create=create)


async def test_a_bucket_that_is_not_there_is_no_empty_one(s3: S3) -> None:
    artifacts = Artifacts("s3://no-such-bucket/p")
    calls: list[Callable[[], object]] = [
        lambda: artifacts.get_bytes("x"),
        lambda: artifacts.put_bytes(b"", "x"),
        lambda: artifacts.put_bytes(BIG, "x"),
        lambda: artifacts.put_bytes(b"", "x", create=True),
        lambda: artifacts.delete("x"),
        lambda: list(artifacts.keys("models")),
        lambda: artifacts.folders("models"),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="bucket"):
            call()
    with pytest.raises(Unavailable, match="bucket"):
        await artifacts.stage(chunks(), filename="net.pt", limit=1 << 30)


def test_what_is_replaced_while_it_is_fetched_is_not_mixed(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.artifacts.RANGE", PART)
    artifacts = Artifacts(url)
    artifacts.put_bytes(BIG, "x")
    with monkeypatch.context() as direct:
        direct.setenv("AWS_ENDPOINT_URL", proxy.to.url)
        another = Artifacts(url)
    gets = itertools.count(1)

    def replaced(_: int, method: str, __: str) -> None:
        if method == "GET" and next(gets) == 3:
            another.put_bytes(BIG[::-1], "x")

    proxy.trouble = replaced
    with pytest.raises(Unavailable, match="replaced"):
        artifacts.fetch("x", tmp_path / "out")


def test_a_server_without_tls_says_how_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    with pytest.raises(Unavailable, match="without TLS") as refused:
        Artifacts("s3://bucket", patience_s=1).get_bytes("key")
    assert "AWS_ALLOW_HTTP" in str(refused.value.hint)
