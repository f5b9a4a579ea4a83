"""One small file per contestant: what is asked of it over the wire, and the server itself in its best form.

A file's `PACKAGES` are installed into an environment of its own; none: this project's. `ask`, `answer` and `command`
run in the harness; what serves runs in that environment, and so imports nothing of the project but this package.
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
MAX_BATCH = 64
SHAPES = {"tiny": (1, 28, 28), "resnet": (3, 224, 224)}


class Sample(NamedTuple):
    """One request's content. x: float32 [1, …]; text: the same numbers as JSON (nested, with the batch axis)."""

    x: Rows
    text: bytes
    jpeg: bytes


class Ask(NamedTuple):
    """A POST as it goes over the wire."""

    path: str
    body: bytes
    headers: dict[str, str]


class Options(NamedTuple):
    """What a server is told on its command line."""

    port: int
    onnx: Path
    model: str
    threads: int
    folder: Path  # this server's own, empty at first

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return SHAPES[self.model]

    def command(self, python: str, module: str) -> list[str]:
        """`python -m module`, told all of it."""
        told = (word for name, value in self._asdict().items() for word in (f"--{name}", str(value)))
        return [python, "-m", module, *told]


def options() -> Options:
    """From the command line."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--port", type=int, required=True)
    asked.add_argument("--onnx", type=Path, required=True)
    asked.add_argument("--model", choices=sorted(SHAPES), required=True)
    asked.add_argument("--threads", type=int, required=True)
    asked.add_argument("--folder", type=Path, required=True)
    return Options(**vars(asked.parse_args()))


def json_ask(path: str, body: bytes) -> Ask:
    return Ask(path, body, {"Content-Type": "application/json"})


def base64_text(content: bytes) -> bytes:
    return base64.b64encode(content)


def flat(values: Any) -> Rows:
    """Nested lists of numbers as one flat array."""
    return np.asarray(values, np.float32).reshape(-1)
