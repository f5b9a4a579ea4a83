"""The process that reads data sets, with hostile code where its decoder of pictures would be."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import zipfile
from pathlib import Path

import escapes
import pytest

from app.errors import BadDataset, Problem
from app.intake.child import read_dataset
from app.intake.manifest import DatasetManifest
from app.settings import Settings

# Found before the real one, this is imported by the real child when it opens the first picture.
HOSTILE = """
import json, os
from pathlib import Path
from app.errors import BadDataset
import escapes
given = json.loads((Path(__file__).parent / "given.py").read_text())
found = escapes.attempts(Path.cwd(), given)
raise BadDataset(json.dumps(found["tried"] | {"environment": sorted(os.environ)}))
"""
BOMB = "import escapes\nescapes.thread_bomb(None, {})"


async def bring(code: str, folder: Path, patch: pytest.MonkeyPatch, **settings: int) -> None:
    """Reads a data set of one picture with that code."""
    (folder / "hostile" / "PIL").mkdir(parents=True, exist_ok=True)
    (folder / "hostile" / "PIL" / "__init__.py").write_text(code)
    patch.syspath_prepend(str(folder / "hostile"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("cats/one.png", b"\x89PNG\r\n\x1a\n")
    scratch = folder / "scratch"
    scratch.mkdir()
    (scratch / "upload").write_bytes(packed.getvalue())
    await read_dataset(Settings(**settings), DatasetManifest(name="x", kind="images"), scratch / "upload", scratch)


async def test_hostile_code_does_not_get_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINESMITH_API_KEYS", "secret")
    for name in ("secret", "changed", "removed", "moved", "truncated"):
        (tmp_path / name).write_text("as it was")
    library = tmp_path / "hostile" / "PIL"
    library.mkdir(parents=True)
    (library / "module.py").write_text("as it was")
    victim = subprocess.Popen(["sleep", "600"])
    try:
        with socket.create_server(("127.0.0.1", 0)) as tcp:
            given = {"outside": str(tmp_path), "port": tcp.getsockname()[1], "victim": victim.pid}
            (library / "given.py").write_text(json.dumps(given | {"library": str(library)}))
            with pytest.raises(Problem) as caught:
                await bring(HOSTILE, tmp_path, monkeypatch)
    finally:
        victim.kill()
        victim.wait()
    found = json.loads(caught.value.detail)
    assert [name for name in found.pop("environment") if name.startswith("ENGINESMITH")] == []
    assert set(found) == set(escapes.FENCES)
    # What each fence stops is told apart in tests/load; here, that they stand around this child too.
    told = {"tcp", "udp", "fork", "start_a_program", "signal_our_parent"}
    if os.uname().machine in ("x86_64", "aarch64"):
        assert [name for name in told if found[name] is None] == []


async def test_a_bomb_of_threads_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="thread") as caught:
        await bring(BOMB, tmp_path, monkeypatch)
    assert caught.value.status < 500
    assert isinstance(caught.value, BadDataset) or caught.value.code == "too_many_threads"


async def test_cpu_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadDataset, match="1 seconds of CPU") as caught:
        await bring("while True: pass", tmp_path, monkeypatch, sandbox_cpu_s=1)
    assert caught.value.code == "too_slow"
