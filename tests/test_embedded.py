"""The embedded store is real, keeps what it was told, and is taken over from an owner that was killed."""

import os
import signal
import time
from pathlib import Path

import pytest
import redis

from app.embedded import EmbeddedStore, answers, socket_path
from app.errors import Conflict


def test_it_keeps_its_data_between_runs(tmp_path: Path) -> None:
    for run in range(2):
        store = EmbeddedStore(tmp_path)
        with redis.Redis.from_url(store.start()) as client:
            assert client.incr("runs") == run + 1
        store.stop()
        assert not answers(store.url)


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    store.start()
    with pytest.raises(Conflict, match="another"):
        EmbeddedStore(tmp_path).start()
    store.stop()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Conflict, match="cannot be used") as refused:
        EmbeddedStore(tmp_path / "file" / "data").start()
    assert "--data" in refused.value.hint


def test_a_server_left_behind_is_taken_over(tmp_path: Path) -> None:
    left = EmbeddedStore(tmp_path)
    left.start()
    process = left._process
    assert process is not None
    assert left._lock is not None
    left._lock.close()  # what the kernel does when an owner is killed
    heir = EmbeddedStore(tmp_path)
    heir.start()
    assert heir._pid == process.pid
    heir.stop()
    process.wait(60)
    assert not answers(heir.url)


def test_it_comes_back_after_a_crash(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    with redis.Redis.from_url(store.start()) as client:
        client.set("k", "v")
        assert client.execute_command("WAITAOF", 1, 0, 0)[0] == 1  # it is on the disk
        assert store._pid is not None
        os.kill(store._pid, signal.SIGKILL)
        while store.alive():
            time.sleep(0.02)
        assert store.restart()
        assert client.get("k") == b"v"
    store.stop()


def test_one_that_does_not_come_back_can_be_tried_again(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    store.start()
    assert store._pid is not None
    os.kill(store._pid, signal.SIGKILL)
    while store.alive():
        time.sleep(0.02)
    (manifest,) = store.folder.rglob("*.manifest")
    whole = manifest.read_bytes()
    manifest.write_bytes(b"no manifest\n")
    assert not store.restart()
    assert not store.alive()
    with pytest.raises(Conflict, match="another"):
        EmbeddedStore(tmp_path).start()  # the folder was not given up
    manifest.write_bytes(whole)
    assert store.restart()
    assert answers(store.url)
    store.stop()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    assert len(os.fsencode(socket_path(deep))) <= 100
    store = EmbeddedStore(deep)
    assert answers(store.start())
    store.stop()


def test_nobody_else_reads_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    store = EmbeddedStore(data)
    store.start()
    store.stop()
    assert data.stat().st_mode & 0o077 == 0
    deep = tmp_path / ("x" * 100) / "data"  # its sockets have no room there
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    shared = socket_path(deep).parent
    assert shared.parent == tmp_path
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(Conflict, match="not this user's alone"):
        EmbeddedStore(deep).start()
