"""A runtime that teaches: answers its own inputs, late or wrongly if asked to.

For tests and for reading; nothing converts to it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import DTYPES, check
from app.errors import DeviceLost, EngineLost, Unavailable
from app.runtimes import Arrays, Availability, BuildOptions, Engine, LoadOptions

SUFFIX = ".echo"
SOURCE = f"model{SUFFIX}"
_doomed = threading.Event()  # the device that this process has: as after an error of CUDA's that stays


@dataclass(frozen=True)
class Behaviour:
    """delay_s, row_s: how long a run takes, and each of its rows.

    A fault happens to a batch in which some number of the first input is the one named: raise_on fails, hang_on hangs
    (for hang_s at most), nan_on answers NaN, short_on loses a row, lose_on loses the engine: no run succeeds after,
    doom_on loses the device for good: nor does any other engine of this process.
    """

    delay_s: float = 0.0
    row_s: float = 0.0
    raise_on: float | None = None
    hang_on: float | None = None
    hang_s: float = 3600.0
    nan_on: float | None = None
    short_on: float | None = None
    lose_on: float | None = None
    doom_on: float | None = None


def available() -> Availability:
    return Availability(True, precisions=("fp32",), version="1", device="cpu")


def ties() -> dict[str, str] | None:
    """Those of the GPU that it is told to play, in the environment: engines of one are none for another."""
    played = os.environ.get("ECHO_DEVICE")
    return {"version": "1", "device": played} if played else None


def build(source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]) -> dict[str, Any]:
    """Copies the source, and compiles nothing. A source that is JSON may have Behaviour's fields: `{"delay_s": 1}`."""
    progress(0.0, "copying")
    shutil.copyfile(source, folder / SOURCE)
    progress(1.0, "copied")
    return {"runtime": "echo", "version": "1", **(ties() or {})}


def load(folder: Path, signature: Signature, options: LoadOptions) -> Engine:
    if _doomed.is_set():
        raise DeviceLost("told to lose the device")
    known = {field.name for field in fields(Behaviour)}
    try:
        given = json.loads((folder / SOURCE).read_bytes())
        found = {name: float(value) for name, value in given.items() if name in known and value is not None}
    except (OSError, ValueError, TypeError, AttributeError):
        found = {}
    return EchoEngine(signature, behaviour=Behaviour(**found))


class EchoEngine:
    """Its i-th output is a copy of its i-th input. `seen` counts the rows of every run, for tests of batching.

    hanging: set while a run hangs. released: ends it.
    """

    def __init__(self, signature: Signature, *, delay_s: float = 0.0, behaviour: Behaviour | None = None) -> None:
        self.signature = signature
        self.behaviour = behaviour or Behaviour(delay_s=delay_s)
        self.seen: list[int] = []
        self.hanging = threading.Event()
        self.released = threading.Event()
        self._closed = threading.Event()
        self._lost = False

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        if self._closed.is_set():
            raise Unavailable("the engine is closed")
        rows = check(self.signature, inputs)
        self.seen.append(rows)
        does, first = self.behaviour, inputs[self.signature.inputs[0].name]
        if does.delay_s or does.row_s:
            time.sleep(does.delay_s + does.row_s * rows)
        if _holds(first, does.hang_on):
            self.hanging.set()
            self.released.wait(does.hang_s)
        if _doomed.is_set() or _holds(first, does.doom_on):
            _doomed.set()
            raise DeviceLost(f"told to lose the device on {does.doom_on}")
        if self._lost or _holds(first, does.lose_on):
            self._lost = True
            raise EngineLost(f"told to be lost on {does.lose_on}")
        if _holds(first, does.raise_on):
            raise RuntimeError(f"told to fail on {does.raise_on}")
        pairs = zip(self.signature.inputs, self.signature.outputs, strict=False)
        outputs = {out.name: np.array(inputs[given.name], dtype=DTYPES[out.dtype]) for given, out in pairs}
        if _holds(first, does.nan_on):
            for array in outputs.values():
                if array.dtype.kind == "f":
                    array.fill(np.nan)
        if _holds(first, does.short_on):
            outputs = {name: array[:-1] for name, array in outputs.items()}
        return outputs

    def close(self) -> None:
        self._closed.set()


def _holds(array: npt.NDArray[Any], value: float | None) -> bool:
    return value is not None and bool((array == value).any())
