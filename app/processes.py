"""Child processes that are started again when they die and end when their parent does."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

log = logging.getLogger("enginesmith.processes")
PR_SET_PDEATHSIG = 1


class Child:
    """One child process: started again when it dies, ended with its parent whatever happens."""

    def __init__(self, name: str, arguments: list[str], environ: dict[str, str], keep: tuple[int, ...] = ()) -> None:
        self.name = name
        self._command = [sys.executable, *arguments]
        self._environ = environ
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s = 0.5
        self._started = 0.0
        self._again_at: float | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._again_at = None
        self._process = subprocess.Popen(
            self._command,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            pass_fds=self._keep,
            start_new_session=True,  # Ctrl-C reaches this parent alone, which then ends them in order
            preexec_fn=die_with_parent(),
        )

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def tend(self) -> None:
        """Starts it again after a crash, with growing pauses."""
        if not self.dead:
            return
        if self._again_at is None:
            code = self._process.returncode if self._process else None
            self._pause_s = 0.5 if time.monotonic() - self._started > 30 else min(10.0, self._pause_s * 2)
            log.error("%s ended (exit code %s); starting it again in %.1f s", self.name, code, self._pause_s)
            self._again_at = time.monotonic() + self._pause_s
        elif time.monotonic() >= self._again_at:
            self.start()

    def ask_to_stop(self) -> None:
        if self._process and not self.dead:
            self._process.terminate()

    def end(self, deadline: float) -> None:
        """Waits until then, and kills."""
        if self._process:
            try:
                self._process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("%s did not stop in time; killed", self.name)
                self._process.kill()
                self._process.wait()


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """What a child runs before its program: the kernel signals it when its parent dies, however that happens."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def bind() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return bind
