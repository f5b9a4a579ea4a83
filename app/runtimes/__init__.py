"""What a runtime is. A module in this folder that `names()` lists IS one, and alone imports its library."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt

from app.domain.records import Signature
from app.domain.tensors import DTYPES as NUMPY_DTYPES  # noqa: F401  part of this interface

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Availability:
    """Whether this process can use a runtime, and if not, why, in words that say what to do."""

    ok: bool
    reason: str = ""
    precisions: tuple[str, ...] = ()
    version: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class BuildOptions:
    """precision: fp32, tf32, fp16, bf16 or int8. shapes: input → concrete shape, where more than the batch varies."""

    precision: str = "fp32"
    max_batch: int = 64
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadOptions:
    """threads: 0 for the library's own choice. instances: runs that may go on at once. precision: as built."""

    threads: int = 0
    instances: int = 1
    precision: str = "fp32"
    max_batch: int = 64


class Engine(Protocol):
    """A compiled network, loaded. `infer` may be called from several threads, `instances` at a time."""

    signature: Signature

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """One run. inputs: every input by name, dtype and shape as in `signature`. Returns every output by name,
        in memory that the caller owns. Raises app.errors.Problem."""
        ...

    def close(self) -> None:
        """Returns the memory. Calling it twice does no harm; `infer` after it raises Unavailable."""
        ...


class Runtime(Protocol):
    SUFFIX: str

    def available(self) -> Availability: ...

    def build(
        self, source: Path, folder: Path, options: BuildOptions, progress: Callable[[float, str], None]
    ) -> dict[str, Any]:
        """Compiles `source` (.onnx; for openvino also TorchScript .pt) into files in `folder`, an empty one.

        progress(share in 0…1, phase). Returns `built_for`: what the engine is tied to (library version, device …).
        Raises Unprocessable naming the operator for a graph that the library refuses, Unavailable without the library.
        """
        ...

    def load(self, folder: Path, signature: Signature, options: LoadOptions) -> Engine:
        """Loads what `build` left in `folder`. Raises Unavailable, Internal."""
        ...


def names() -> list[str]:
    """Every runtime in this folder, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Runtime:
    """The runtime of that name. Importing it does not import its library. Raises KeyError."""
    if name not in names():
        raise KeyError(name)
    return cast(Runtime, importlib.import_module(f"{__name__}.{name}"))
