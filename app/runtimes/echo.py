"""A runtime that teaches: answers its own inputs, after a delay if asked to.

For tests and for reading; nothing converts to it.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import DTYPES, check
from app.errors import Unavailable
from app.runtimes import Arrays, Availability, BuildOptions, Engine, LoadOptions

SUFFIX = ".echo"


def available() -> Availability:
    return Availability(True, precisions=("fp32",), version="1", device="cpu")


def build(source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]) -> dict[str, Any]:
    """Copies the source, and compiles nothing. A source that is JSON may say `{"delay_s": 0.01}`."""
    progress(0.0, "copying")
    shutil.copyfile(source, folder / f"model{SUFFIX}")
    progress(1.0, "copied")
    return {"runtime": "echo", "version": "1"}


def load(folder: Path, signature: Signature, options: LoadOptions) -> Engine:
    try:
        delay = float(json.loads((folder / f"model{SUFFIX}").read_bytes())["delay_s"])
    except (OSError, ValueError, KeyError, TypeError):
        delay = 0.0
    return EchoEngine(signature, delay_s=delay)


class EchoEngine:
    """Its i-th output is a copy of its i-th input. `seen` counts the rows of every run, for tests of batching."""

    def __init__(self, signature: Signature, *, delay_s: float = 0.0) -> None:
        self.signature = signature
        self.delay_s = delay_s
        self.seen: list[int] = []
        self._closed = threading.Event()

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        if self._closed.is_set():
            raise Unavailable("the engine is closed")
        self.seen.append(check(self.signature, inputs))
        if self.delay_s:
            time.sleep(self.delay_s)
        pairs = zip(self.signature.inputs, self.signature.outputs, strict=False)
        return {out.name: np.array(inputs[given.name], dtype=DTYPES[out.dtype]) for given, out in pairs}

    def close(self) -> None:
        self._closed.set()
