"""What a runtime is. A module in this folder that `names()` lists IS one, and alone imports its library."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
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


class TimingCache(Protocol):
    """What builds have measured of kernels, on this kind of GPU with this version of the library. Neither call raises:
    a build does without."""

    def read(self) -> bytes:
        """What is kept now; nothing at first."""
        ...

    def write(self, measured: bytes) -> bool:
        """Keeps this in its place. False where somebody else has done so since `read`: read and combine, then again."""
        ...


@dataclass(frozen=True)
class BuildOptions:
    """precision: fp32, tf32, fp16, bf16 or int8. shapes: input → concrete shape, where more than the batch varies.

    What only TensorRT knows: buckets, the largest batch of each optimization profile (one for all unless given); level
    (0…5) and workspace_bytes, its own defaults unless given; sparse, whether kernels for 2:4 weights may be chosen
    (unless given: where there are such weights); samples, inputs on which the range of fp16 is looked at; timing_cache;
    refit, whether the plan is to be one whose weights can be exchanged, and refittable, which finds such a plan by the
    key of its structure: where there is one it is not built.
    """

    precision: str = "fp32"
    max_batch: int = 64
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    buckets: tuple[int, ...] = ()
    level: int | None = None
    workspace_bytes: int | None = None
    sparse: bool | None = None
    samples: Sequence[Arrays] = ()
    timing_cache: TimingCache | None = None
    refit: bool = False
    refittable: Callable[[str], Path | None] | None = None


@dataclass(frozen=True)
class LoadOptions:
    """threads: 0 for the library's own choice. instances: runs that may go on at once. precision: as built."""

    threads: int = 0
    instances: int = 1
    precision: str = "fp32"
    max_batch: int = 64


class Slot(Protocol):
    """Input memory of one instance of an engine: the batcher gathers a batch into it, once, and has it run.

    One thread uses a slot. What lies in it is the engine's: an engine may bind it to its library, or lock its pages.
    fresh: whether `run` gives memory that the caller owns; else it is valid until the next `fill`, and is to be copied.
    A slot may have `on_gpu`: of the last run, seconds of copying in, computing and copying out, and whether it was one
    CUDA graph.
    """

    fresh: bool

    def fill(self, parts: Sequence[Arrays], rows: int) -> None:
        """Takes the rows of several requests, one behind the other: every input by name, checked against the
        signature, alike in all dimensions but the first. Where the signature has no batch there is one part. The
        parts must stay as they are until `run` has returned, and are not needed any more after it. Raises Problem."""
        ...

    def run(self) -> dict[str, npt.NDArray[Any]]:
        """One run over what was filled in. Returns every output by name. Raises Problem."""
        ...


class Engine(Protocol):
    """A compiled network, loaded. `infer` may be called from several threads, `instances` at a time.

    Five things an engine may have beside this: `slot()`, a fresh Slot over memory of its own (without it rows are
    gathered into plain memory that is handed to `infer`); `met`, a set of batch sizes whose first run is over,
    where the first run of a size costs far more than the next (without it every size is as good as another);
    `gpu_bytes`, what it holds on a GPU; `steady`, whether the work of a run depends on the size of the batch alone, so
    that no values make it take long; and `interrupt(thread)`, called from another thread, which soon has the run that a
    thread is in raise (without it a run that hangs keeps its thread for as long as it likes).
    """

    signature: Signature

    def infer(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """One run. inputs: every input by name, dtype and shape as in `signature`. Returns every output by name,
        in memory that the caller owns. Raises app.errors.Problem."""
        ...

    def close(self) -> None:
        """Returns the memory. Calling it twice does no harm; `infer` after it raises Unavailable. It does not wait for
        a run that is on its way, which may be one that hangs, and takes no memory from under it."""
        ...


class Runtime(Protocol):
    """Two things more has a runtime whose engines do not travel: `ties()`, see below, and `SOURCE`, the file among
    those of an engine that `build` makes another one from, for another GPU, with the same options."""

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


def ties(name: str) -> dict[str, str] | None:
    """What an engine that this process builds for that runtime is tied to, where engines do not travel: version, GPU.
    None where they do, and where this process has no GPU."""
    found = getattr(get(name), "ties", None)
    return found() if found is not None else None


def source_of(name: str) -> str:
    """Of an engine's files the one that another engine can be built from, where engines do not travel."""
    return str(get(name).SOURCE)  # type: ignore[attr-defined]  # see Runtime


def misfit(name: str, built_for: Mapping[str, Any]) -> str | None:
    """Why an engine of that runtime that was built for something else cannot be loaded here; None where it can."""
    here = ties(name)
    if here is None:
        return None
    apart = [
        f"{told.replace('_', ' ')} {built_for[told]}, here {found}"
        for told, found in here.items()
        if built_for.get(told) is not None and built_for[told] != found
    ]
    return "; ".join(apart) or None


def slot_of(engine: Engine, max_rows: int) -> Slot:
    """Input memory for one thread that runs batches of up to `max_rows` rows."""
    make = getattr(engine, "slot", None)
    if make is not None:
        return cast(Slot, make())
    plain = importlib.import_module(f"{__name__}._slots")  # it imports this file
    return cast(Slot, plain.PlainSlot(engine, max_rows))


def names() -> list[str]:
    """Every runtime in this folder, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Runtime:
    """The runtime of that name. Importing it does not import its library. Raises KeyError."""
    if name not in names():
        raise KeyError(name)
    return cast(Runtime, importlib.import_module(f"{__name__}.{name}"))
