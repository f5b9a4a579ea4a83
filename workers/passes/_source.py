"""A version that an engine can be built from: its ONNX file, its own answers, and inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.domain.records import Version
from app.errors import Conflict
from workers.context import Context
from workers.load import sandbox
from workers.net import load
from workers.nn import reference
from workers.nn.export import to_onnx
from workers.nn.requests import Plan, Request, check_shapes, plan

Answer = Callable[[list[Request]], list[Request]]
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Source:
    """onnx: what engines are built from. answer: the source's own answers. plan: how to make inputs that it takes."""

    onnx: Path
    opset: int | None
    answer: Answer
    plan: Plan


def open_source(
    version: Version,
    folder: Path,
    ctx: Context,
    said: Shapes | None,
    preferred: Shapes,
    seed: int,
    *,
    export: bool = True,
) -> Source:
    """said: shapes asked for. preferred: shapes to try first where nothing is said. export: False leaves a TorchScript
    program as it is, which then has no ONNX file. Raises Conflict, Unprocessable."""
    if version.is_engine:
        raise Conflict(
            f"{version.ref} is an engine already ({version.format})",
            code="not_convertible",
            hint=f"convert {version.parent or 'the version it came from'} instead",
        )
    if version.format == "onnx":
        return _onnx(version, folder / "model.onnx", ctx, said, preferred, seed)
    if version.format == "torchscript":
        return _torchscript(version, folder / "model.pt", ctx, said, preferred, seed, export)
    return _torch(version, folder, ctx, said, preferred, seed)


def _torch(version: Version, folder: Path, ctx: Context, said: Shapes | None, preferred: Shapes, seed: int) -> Source:
    net = load(folder, version)
    example = net.example()
    usual = {t.name: tuple(e.shape) for t, e in zip(version.signature.inputs, example, strict=True)}
    ask = reference.eager(net)
    found = plan(version.signature, said, ask, preferred={**usual, **preferred}, seed=seed)
    path = ctx.scratch / "source.onnx"
    ctx.progress(0, None, phase="exporting to ONNX")
    opset = to_onnx(net.module, version.signature, example, path)
    return Source(path, opset, lambda requests: [ask(r) for r in requests], found)


def _onnx(version: Version, path: Path, ctx: Context, said: Shapes | None, preferred: Shapes, seed: int) -> Source:
    ask = reference.onnx(path, ctx.threads)
    found = plan(
        version.signature,
        said,
        ask,
        symbols=reference.symbols(path),
        constants=reference.constants(path),
        preferred=preferred,
        positive=reference.positive(path),
        seed=seed,
    )
    return Source(path, reference.opset(path), lambda requests: [ask(r) for r in requests], found)


def _torchscript(
    version: Version, path: Path, ctx: Context, said: Shapes | None, preferred: Shapes, seed: int, export: bool
) -> Source:
    """Opened in the sandbox alone: there it is exported, and asked."""
    check_shapes(version.signature, said)
    folder = ctx.folder("torchscript")
    (folder / "model.pt").write_bytes(path.read_bytes())

    def ask(requests: list[Request], onnx: str | None) -> list[Request]:
        given = {f"{i}/{name}": array for i, r in enumerate(requests) for name, array in r.items()}
        np.savez(folder / "inputs.npz", **given)  # type: ignore[arg-type]  # numpy's stub: names of arrays
        sandbox.run(
            "workers.load.torchscript_export:export",
            folder,
            {
                "file": "model.pt",
                "onnx": onnx,
                "inputs": "inputs.npz",
                "outputs": "outputs.npz",
                "signature": version.signature.model_dump(mode="json"),
                "threads": ctx.threads,
            },
            ctx.settings,
        )
        with np.load(folder / "outputs.npz") as stored:
            names = [t.name for t in version.signature.outputs]
            return [{name: stored[f"{i}/{name}"] for name in names} for i in range(len(requests))]

    ctx.progress(0, None, phase="exporting to ONNX")
    # One process start per try is too dear for a search: the usual sizes, or those that were said.
    sizes = {t.name: [32 if n == -1 else n for n in t.shape] for t in version.signature.inputs}
    found = plan(version.signature, said, lambda request: {}, preferred={**sizes, **preferred}, seed=seed)
    made = folder / "source.onnx"
    if export:
        ask([found.draw(np.random.default_rng(seed), 2 if version.signature.batched else 1)], made.name)
    return Source(made, reference.opset(made) if export else None, lambda requests: ask(requests, None), found)
