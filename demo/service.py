"""Starts the whole service as a stranger would, in a fresh folder on a free port, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

READY = re.compile(r"Enginesmith is ready at (http://\S+)")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartFailed(Exception):
    """The service ended, or said nothing, instead of becoming ready."""


@contextmanager
def service(
    workers: int = 1, patience_s: float = 90.0, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Path]]:
    """(URL, folder) of a running service. On the way out, however that comes, its processes and its folder go.

    settings: variables of its environment, ENGINESMITH_…; those of ours are not its.
    Raises StartFailed with the end of its log.
    """
    before = {number: signal.signal(number, _leave) for number in SIGNALS}
    folder = Path(tempfile.mkdtemp(prefix="enginesmith-demo-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        log = folder / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "app",
                    "serve",
                    "--port",
                    "0",
                    "--workers",
                    str(workers),
                    "--data",
                    folder / "data",
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")} | dict(settings or {}),
                # A session of its own: Ctrl-C reaches us alone, and we end the service in order.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        yield _wait_until_ready(process, log, patience_s), folder
    finally:
        for number in SIGNALS:
            # A second Ctrl-C must not keep us from cleaning up after the first.
            signal.signal(number, signal.SIG_IGN)
        if process is not None:
            _stop(process)
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """Where Linux can: the service is told to end should this process be killed outright."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, patience_s: float) -> str:
    assert process.stdout is not None
    until, said = time.monotonic() + patience_s, b""
    while time.monotonic() < until:
        if select.select([process.stdout], [], [], 0.1)[0]:
            said += os.read(process.stdout.fileno(), 4096)
        if found := READY.search(said.decode()):
            return found[1]
        if process.poll() is not None:
            break
    ended = (
        f"ended with code {process.returncode}"
        if process.returncode is not None
        else f"said nothing for {patience_s:.0f} s"
    )
    raise StartFailed(f"the service {ended}; its log ends:\n" + "\n".join(log.read_text().splitlines()[-20:]))


def _stop(process: subprocess.Popen[bytes], patience_s: float = 30.0) -> None:
    """In order first; then whatever is left of its session, by force."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    for number in session_members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def session_members(session: int) -> list[int]:
    """The processes of a session (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may hold spaces: state, parent, group, session.
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(stat.parent.name))
    return found
