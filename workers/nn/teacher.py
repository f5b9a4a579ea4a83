"""Who is learnt from: a version of any format as a teacher, asked batch by batch, or once for every training row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from app.domain.records import Version
from app.domain.specs import Training
from app.errors import BadDataset, Unavailable, Unprocessable
from workers.context import Context
from workers.load import sandbox
from workers.net import load
from workers.nn.data import Data
from workers.nn.device import autocast, cuda_devices, layout
from workers.nn.loaded import load_engine
from workers.nn.predict import chosen, engine, first, sensible_batch

# The most that answers kept for every training row may take: they are read again every epoch, and must stay in memory.
KEPT_BYTES = 1024**3
Ask = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Teacher:
    """A version whose answers are learnt. ask: a batch in the student's dtype → its first output.

    network: of a torch version, to be moved to the student's device. key: tells its answers to these rows from others.
    at_once: rows, when it is asked for all of them. known: its answers to the training rows, in the order of
    `data.train`, once `prepare` found that worth its while.
    """

    ref: str
    ask: Ask
    close: Callable[[], None]
    key: str
    network: nn.Module | None = None
    at_once: int = 256
    known: torch.Tensor | None = None
    broken: torch.Tensor | None = None

    def answers(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Its answers, float32, on the device of x. rows: the numbers of x in the training split."""
        if self.known is not None:
            return self.known.index_select(0, rows).to(x.device, non_blocking=True)
        with torch.no_grad():
            found = self.ask(x).float()
        broken = _broken(found)  # looked at later: a look at every step would wait for a GPU
        self.broken = broken if self.broken is None else self.broken | broken
        return found

    def check(self) -> None:
        """Raises Unprocessable where an answer so far was no number."""
        if self.broken is not None and bool(self.broken):
            raise Unprocessable(
                f"the teacher {self.ref} answers rows of the training split with NaN or infinity",
                code="teacher_not_finite",
                hint='name another `teacher`, or say "alpha": 0 for a training without one',
            )

    def prepare(
        self, data: Data, plan: Training, ctx: Context, turn: AbstractContextManager[Any], *, bf16: bool = False
    ) -> None:
        """Asks for every training row once, where that is cheaper than asking in every epoch: a runtime's answers
        always, a network's when there are several epochs. They lie memory-mapped in the job's scratch folder.

        turn: held while it is asked. bf16: whether the student's steps run so, and its own then too. Raises what
        `check` does, Unprocessable where the teacher does not run on the rows.
        """
        rows = data.train
        x, _ = rows.take(torch.arange(min(1, len(rows))))
        row = self.look(x.to(ctx.device))[0]
        fits = 4 * row.numel() * len(rows) <= KEPT_BYTES
        # With augmentation no row is seen twice, and the teacher must see what the student sees.
        if not fits or plan.augment != "none" or (self.network is not None and plan.epochs == 1):
            return
        path = (ctx.fetched or ctx.scratch) / f"teacher-{self.key}{'-bf16' if bf16 else ''}.npy"
        if not path.exists() and not ctx.recalled(path):  # a job that fine-tunes several times asks once
            with (
                autocast(ctx.device, bf16=bf16),
                torch.random.fork_rng(cuda_devices()),
            ):  # what it draws must not shift what the student draws
                torch.manual_seed(plan.seed)
                self._write(path, data, tuple(row.shape), ctx, turn)
            ctx.share(path)
        self.known = torch.from_numpy(np.asarray(np.load(path, mmap_mode="c")))

    def look(self, x: torch.Tensor) -> torch.Tensor:
        """Its answers to a few rows. Raises Unprocessable where it does not run on them, or gives no numbers."""
        try:
            with torch.no_grad():
                found = self.ask(x).float()
        except (Unavailable, BadDataset):
            raise
        except Exception as error:  # whatever a network or a library raises
            raise Unprocessable(
                f"the teacher {self.ref} does not run on rows of shape {list(x.shape[1:])}: {error}",
                code="teacher_mismatch",
                hint="a teacher takes the same inputs as the model that learns from it",
            ) from error
        self.broken = _broken(found)
        self.check()
        return found

    def _write(
        self, path: Path, data: Data, row: tuple[int, ...], ctx: Context, turn: AbstractContextManager[Any]
    ) -> None:
        """Not through a memory map: writing to one on a full disk ends the process."""
        rows, phase = data.train, f"asking the teacher {self.ref}"
        unfinished, done = path.with_suffix(".part"), 0
        with unfinished.open("wb") as file:
            about = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), *row)}
            np.lib.format.write_array_header_1_0(file, about)
            for numbers in rows.picks(sensible_batch(rows.x.shape[1:], most=self.at_once)):
                ctx.progress(done, len(rows), "rows", phase)
                x, _ = rows.take(numbers)
                with turn:
                    found = self.answers(x.to(ctx.device), numbers).cpu().numpy()
                    self.check()
                file.write(np.ascontiguousarray(found, dtype="<f4").data)
                done += len(numbers)
        unfinished.rename(path)


def open_teacher(ref: str, data: Data, ctx: Context, module: nn.Module | None = None) -> Teacher:
    """data: in the student's dtype. module: the network of a torch version, where it is in hand and nobody else's.

    Raises BadDataset where the teacher takes other rows, Unavailable without its runtime, NotFound.
    """
    version, folder = ctx.source(ref)
    fitted = data.fit_to(version.signature)
    dtype = fitted.train.dtype or fitted.train.x.dtype
    key = _key(version, folder, data)
    if version.format == "torch":
        network = (module if module is not None else load(folder, version).module).to(ctx.device).eval()
        network.requires_grad_(False)
        format = layout(network, fitted, ctx.device)
        network.to(memory_format=format)  # type: ignore[call-overload]  # torch's stubs lack it
        return Teacher(
            version.ref, lambda x: first(network(x.to(dtype, memory_format=format))), lambda: None, key, network
        )
    if version.format == "torchscript":
        program = _torchscript(version, folder, ctx)
        return Teacher(version.ref, lambda x: program(x.to(dtype).cpu()).to(x.device), lambda: None, key, at_once=4096)
    loaded, most = load_engine(version, folder, ctx.threads)
    predict = engine(loaded, version.signature, most)

    def ask(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.asarray(predict(x.to(dtype).cpu()), dtype=np.float32)).to(x.device)

    return Teacher(version.ref, ask, loaded.close, key)


def _torchscript(version: Version, folder: Path, ctx: Context) -> Ask:
    """A program as uploaded is run in the sandbox alone: a process a batch."""
    name, out = version.signature.inputs[0].name, chosen(version.signature)
    inside = ctx.folder("teacher")
    (inside / "model.pt").write_bytes((folder / "model.pt").read_bytes())

    def ask(x: torch.Tensor) -> torch.Tensor:
        rows = x.numpy()
        parts = [rows] if version.signature.batched else [rows[i : i + 1] for i in range(len(rows))]
        given = {f"{i}/{name}": part for i, part in enumerate(parts)}
        np.savez(inside / "inputs.npz", **given)  # type: ignore[arg-type]  # numpy's stub: names of arrays
        sandbox.run(
            "workers.load.torchscript_export:export",
            inside,
            {
                "file": "model.pt",
                "onnx": None,
                "inputs": "inputs.npz",
                "outputs": "outputs.npz",
                "signature": version.signature.model_dump(mode="json"),
                "threads": ctx.threads,
            },
            ctx.settings,
        )
        with np.load(inside / "outputs.npz") as stored:
            found = np.concatenate([stored[f"{i}/{out}"] for i in range(len(parts))])
        return torch.from_numpy(found)

    return ask


def _key(version: Version, folder: Path, data: Data) -> str:
    """The same wherever the same network is asked for the same rows."""
    rows = data.train
    network: object = sorted(version.files.items()) or str(folder)
    told = f"{version.format} {network} {sorted(data.record.files.items())} {rows.dtype}".encode()
    index = b"" if rows.index is None else rows.index.numpy().tobytes()
    return hashlib.sha256(told + index).hexdigest()[:16]


def _broken(found: torch.Tensor) -> torch.Tensor:
    """Whether any of it is NaN or infinity. Minus infinity, the logarithm of a probability of zero, is neither."""
    return (found.isnan() | found.isposinf()).any()
