"""What the sandbox does to convert TorchScript: the program as ONNX, and its own answers to compare an engine with."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from enginesmith.shapes import flatten

from app.domain.records import Signature
from app.errors import Problem, Unprocessable
from workers.load import torchscript


def export(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """folder/`file` → folder/`onnx`, unless that is null; runs it on `inputs` (.npz of `number/name`) → `outputs`.

    arguments: file, onnx, inputs, outputs, signature, threads. Raises Unprocessable where it cannot be exported.
    """
    torch.set_num_threads(max(1, int(arguments.get("threads") or 1)))
    signature = Signature.model_validate(arguments["signature"])
    module = torchscript.read(folder / arguments["file"])
    requests = _requests(folder / arguments["inputs"], signature)
    run = _runner(module, signature, requests[0])
    with torch.no_grad():
        answers = {
            f"{i}/{t.name}": np.asarray(value.detach())
            for i, inputs in enumerate(requests)
            for t, value in zip(signature.outputs, flatten(run(inputs))[0], strict=True)
        }
    np.savez(folder / arguments["outputs"], **answers)  # type: ignore[arg-type]  # numpy's stub: names of arrays
    if arguments.get("onnx"):
        _export(module, signature, requests[0], folder / arguments["onnx"])
    return {}


def _requests(path: Path, signature: Signature) -> list[tuple[torch.Tensor, ...]]:
    with np.load(path) as stored:
        count = 1 + max(int(key.partition("/")[0]) for key in stored.files)
        return [
            tuple(torch.from_numpy(np.ascontiguousarray(stored[f"{i}/{t.name}"])) for t in signature.inputs)
            for i in range(count)
        ]


def _runner(module: torch.jit.ScriptModule, signature: Signature, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The program with values for its plain integer arguments on which it runs."""
    arguments = torchscript._arguments(module)
    problem: Exception | None = None
    for numbers in torchscript._tries(module, arguments[: len(signature.inputs)]):
        run = partial(torchscript._call, module, arguments, numbers)
        try:
            with torch.no_grad():
                run(inputs)
        except Exception as error:  # whatever the program raises
            problem = problem or error
            continue
        return run
    raise Unprocessable(
        f"this TorchScript program does not run on the shapes of its signature: {_line(problem)}",
        code="not_convertible",
        hint='say "shapes" in the job, or upload the network with an architecture',
    )


def _export(module: torch.jit.ScriptModule, signature: Signature, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    plain = [(name, kind) for name, kind, _ in torchscript._arguments(module) if kind in ("int", "float", "bool")]
    if plain:
        told = ", ".join(f"{name}: {kind}" for name, kind in plain)
        raise _refusal(f"its forward takes a plain number ({told}), which an engine cannot be given")
    axes = {t.name: [a for a, n in enumerate(t.shape) if n == -1] for t in (*signature.inputs, *signature.outputs)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                inputs,
                str(path),
                dynamo=False,
                verbose=False,
                input_names=[t.name for t in signature.inputs],
                output_names=[t.name for t in signature.outputs],
                dynamic_axes=axes,
            )
    except Problem:
        raise
    except Exception as error:
        raise _refusal(f"PyTorch's exporter refuses it: {_line(error)}") from error


def _refusal(why: str) -> Unprocessable:
    return Unprocessable(
        f"this TorchScript program cannot be converted: {why}",
        code="not_convertible",
        hint="upload the network's weights with an `architecture`, or its ONNX export",
    )


def _line(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:400]
