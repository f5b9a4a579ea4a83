"""Hostile code in the sandbox's real child: one test for each way out, and what holds where the kernel offers less."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import escapes
import pytest
from running import until

from app.confinement import calls, seccomp
from app.confinement.fences import Fences
from app.errors import Unprocessable
from app.settings import Settings
from workers.load import sandbox

HERE = Path(__file__).parent
SETTINGS = Settings(sandbox_memory_bytes=2 * 2**30, sandbox_cpu_s=120, threads=1)


@pytest.fixture(scope="module", autouse=True)
def _on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A world outside: files, sockets, a process of the same user, and modules with a secret beside them."""
    outside = tmp_path_factory.mktemp("outside")
    for name in ("secret", "changed", "removed", "moved", "truncated"):
        (outside / name).write_text("as it was")
    library = outside / "library"
    library.mkdir()
    (library / "module.py").write_text("as it was")
    (library / "credentials").write_text("as it was")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(library))
        patch.setenv("ENGINESMITH_API_KEYS", "secret")
        patch.setenv("ENGINESMITH_REDIS_URL", "redis://:secret@localhost")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = tcp.getsockname()[1]
        for kind, where in (
            (socket.SOCK_STREAM, str(outside / "stream")),
            (socket.SOCK_DGRAM, str(outside / "datagram")),
            (socket.SOCK_STREAM, f"\0enginesmith-{port}"),
        ):
            listening = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            listening.bind(where)
            if kind == socket.SOCK_STREAM:
                listening.listen()
        victim = subprocess.Popen(["sleep", "600"])
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        yield {"outside": str(outside), "port": port, "victim": victim.pid, "library": str(library)}


@pytest.fixture(scope="module")
def fences() -> Fences:
    found = sandbox.fences()
    assert found
    return found


@pytest.fixture(scope="module")
def tried(place: dict[str, Any], fences: Fences, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Every attempt, where all that this kernel offers is in force."""
    found = sandbox.run("escapes:attempts", tmp_path_factory.mktemp("all") / "scratch", place, SETTINGS)
    assert found["isolation"] == fences.told()
    return dict(found["tried"])


def standing(fences: Fences) -> set[str]:
    found = {f"landlock {n}" for n in range(1, fences.landlock + 1)}
    return found | ({"namespace"} if fences.namespace else set()) | (set() if fences.seccomp else {"seccomp"})


@pytest.mark.parametrize("name", escapes.FENCES)
def test_there_is_no_way_out_by(name: str, tried: dict[str, str | None], fences: Fences) -> None:
    if not escapes.FENCES[name] & standing(fences):
        pytest.skip(f"nothing here forbids it, and the report says so: {fences.told()}")
    assert tried[name] is not None


def test_nothing_outside_has_changed(tried: dict[str, str | None], place: dict[str, Any], fences: Fences) -> None:
    if not fences.strong or fences.seccomp:
        pytest.skip(fences.told())
    outside = Path(place["outside"])
    names = ("secret", "changed", "removed", "moved", "truncated", "library/module.py")
    assert {(outside / name).read_text() for name in names} == {"as it was"}
    assert not (outside / "canary").exists()
    assert (outside / "secret").stat().st_mode & 0o777 == (outside / "moved").stat().st_mode & 0o777


def test_what_it_inherits(place: dict[str, Any], tmp_path: Path) -> None:
    """No secret in the environment, no connection, no file of ours: a request, a pipe and a place to complain."""
    found = sandbox.run("tasks:environment", tmp_path / "scratch", {}, SETTINGS)["environment"]
    assert [k for k, v in found.items() if "secret" in v or k.startswith(("ENGINESMITH", "AWS"))] == []
    files = sandbox.run("escapes:open_files", tmp_path / "scratch", {}, SETTINGS)["files"]
    kinds = {f.partition(":")[0] for f in files if not f.startswith(("/dev/null", f"{tmp_path}", "/proc"))}
    assert all(k == "pipe" or k.endswith("(deleted)") for k in kinds), files


def test_a_fork_bomb_is_one_process(tmp_path: Path, fences: Fences) -> None:
    if fences.seccomp:
        pytest.skip(fences.told())
    with pytest.raises(Unprocessable, match="not permitted"):
        sandbox.run("escapes:fork_bomb", tmp_path / "scratch", {}, SETTINGS)


def test_a_bomb_of_threads_is_ended(tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="thread"):
        sandbox.run("escapes:thread_bomb", tmp_path / "scratch", {}, SETTINGS)


def test_memory_that_no_limit_counts_is_seen(tmp_path: Path) -> None:
    settings = Settings(sandbox_memory_bytes=2**29, sandbox_cpu_s=120, threads=1)
    with pytest.raises(Unprocessable, match="GiB of memory") as caught:
        sandbox.run("escapes:memory_made_read_only", tmp_path / "scratch", {}, settings)
    assert caught.value.code == "too_much_memory"


def test_whoever_does_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.confinement.watch.IDLE_S", 1.0)
    with pytest.raises(Unprocessable, match="stood still") as caught:
        sandbox.run("escapes:sleep", tmp_path / "scratch", {}, SETTINGS)
    assert caught.value.code == "too_slow"


def test_complaints_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="complaining"):
        sandbox.run("escapes:complain", tmp_path / "scratch", {}, Settings(sandbox_cpu_s=60, threads=1))


@pytest.mark.parametrize("task", ["another_architecture", "x32"])
def test_calls_of_another_architecture_end_it(task: str, tmp_path: Path, fences: Fences) -> None:
    if platform.machine() != "x86_64" or fences.seccomp:
        pytest.skip(fences.told())
    with pytest.raises(Unprocessable) as caught:
        sandbox.run(f"escapes:{task}", tmp_path / "scratch", {}, SETTINGS)
    assert caught.value.code == "sandbox_crashed"


def test_a_bomb_of_memory_dies_alone(tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="memory"):
        sandbox.run("tasks:hoard", tmp_path / "scratch", {"bytes": 3 * 2**30}, SETTINGS)
    assert sandbox.run("tasks:hoard", tmp_path / "scratch", {"bytes": 2**20}, SETTINGS)["bytes"] == 2**20


def lacking(what: str, task: str, folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """As on a kernel without some of the fences."""
    if platform.machine() not in ("x86_64", "aarch64") or not _filters():
        pytest.skip("the lack is made by a filter, and this kernel has none")
    done = subprocess.run(
        [sys.executable, str(HERE / "older_kernel.py"), what, task, str(folder), json.dumps(given)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def _filters() -> bool:
    found = sandbox.fences()
    return bool(found and found.seccomp is None)


@pytest.mark.parametrize(
    ("what", "level"),
    [
        ("landlock", "network"),
        ("namespace", "landlock"),
        ("seccomp", "namespaces"),
        ("seccomp,namespace", "files"),
        ("landlock,namespace", "network"),
        ("landlock,namespace,seccomp", "none"),
    ],
)
def test_with_less_the_rest_holds_and_is_told(
    what: str, level: str, place: dict[str, Any], fences: Fences, tmp_path: Path
) -> None:
    given = _copied(place, tmp_path)
    found = lacking(what, "escapes:attempts", tmp_path / "scratch", given)
    gone = {"landlock": "no landlock", "namespace": "no network namespace", "seccomp": "no seccomp"}
    said = found["isolation"]
    assert [name for name, words in gone.items() if (words in said) != (name in what or words in fences.told())] == []
    if fences.namespace and fences.landlock:
        assert said.partition(":")[0] == level
    left = {f for f in standing(fences) if f.partition(" ")[0] not in what}
    assert [n for n, by in escapes.FENCES.items() if by & left and found["tried"][n] is None] == []


def _copied(place: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same world with files of its own: some attempts succeed on them."""
    outside = folder / "outside"
    plain = ("secret", "changed", "removed", "moved", "truncated", "library")
    outside.mkdir()
    for name in plain:
        source = Path(place["outside"]) / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, outside / name)
    for name in ("stream", "datagram"):
        (outside / name).hardlink_to(Path(place["outside"]) / name)
    return place | {"outside": str(outside)}


def test_without_any_fence_nothing_is_left_running_or_linked(tmp_path: Path) -> None:
    without = "landlock,namespace,seccomp"
    pid = lacking(without, "escapes:leave_a_child", tmp_path / "one", {})["pid"]
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    (tmp_path / "secret").write_text("secret")
    found = lacking(without, "escapes:link_to_a_secret", tmp_path / "two", {"secret": str(tmp_path / "secret")})
    assert "model.safetensors" in found["problem"]["detail"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_way_through_the_filter_ends(machine: str) -> None:
    """Each jump lands inside the program, and its last step is a return."""
    steps = seccomp.program(machine, 4711)
    assert len(steps) < 4096
    for at, (operation, yes, no, _) in enumerate(steps):
        if operation & 0x07 == 0x05:
            assert max(at + 1 + yes, at + 1 + no) < len(steps)
    assert steps[-1][0] == 0x06


@pytest.mark.parametrize(("column", "table"), [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")])
def test_the_numbers_are_the_kernels(column: int, table: str) -> None:
    header = Path("/usr/include", table)
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    words = (line.split()[1:3] for line in header.read_text().splitlines() if re.match(r"#define __NR\w* \d+$", line))
    known = {re.sub(r"^__NR(3264)?_", "", name): int(number) for name, number in words}
    ours = {name: numbers[column] for name, numbers in (calls.REFUSED | calls.JUDGED).items()}
    assert {n: (ours[n], known[n]) for n in ours if n in known and ours[n] != known[n]} == {}
