"""torch → ONNX, in one file, with the batch and every other dynamic size of the signature left dynamic."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.domain.records import Signature
from app.errors import Unprocessable

LOUD = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.fx", "torch._dynamo")


def to_onnx(module: nn.Module, signature: Signature, example: tuple[torch.Tensor, ...], path: Path) -> int:
    """Writes `path` and returns its opset. example: inputs of two rows or more. Raises Unprocessable with the reason.

    torch's exporter through torch.export; where that fails, the older one that follows a run of the network.
    """
    module = module.cpu().eval()
    names: dict[str, Any] = {
        "input_names": [t.name for t in signature.inputs],
        "output_names": [t.name for t in signature.outputs],
    }
    failed: list[str] = []
    for attempt in (_exported, _followed):
        try:
            with silence(), torch.no_grad():
                attempt(module, signature, tuple(t.clone() for t in example), path, names)
            return _tidy(path)
        except Exception as error:  # the exporters raise dozens of kinds
            failed.append(_reason(error))
            path.unlink(missing_ok=True)
    raise Unprocessable(
        f"this network cannot be exported to ONNX: {failed[0]}",
        code="not_exportable",
        hint="what depends on the values of tensors, and not on their shapes alone, cannot be exported",
    )


def _exported(
    module: nn.Module, signature: Signature, example: tuple[torch.Tensor, ...], path: Path, names: dict[str, Any]
) -> None:
    batch = torch.export.Dim("batch", min=1, max=2**20)
    dims = tuple(
        {a: batch if a == t.batch_axis else torch.export.Dim.DYNAMIC for a, n in enumerate(t.shape) if n == -1}
        for t in signature.inputs
    )
    torch.onnx.export(
        module, example, str(path), dynamo=True, dynamic_shapes=dims, external_data=False, verbose=False, **names
    )


def _followed(
    module: nn.Module, signature: Signature, example: tuple[torch.Tensor, ...], path: Path, names: dict[str, Any]
) -> None:
    axes = {t.name: [a for a, n in enumerate(t.shape) if n == -1] for t in (*signature.inputs, *signature.outputs)}
    torch.onnx.export(module, example, str(path), dynamo=False, dynamic_axes=axes, verbose=False, **names)


@contextmanager
def silence() -> Iterator[None]:
    """The exporters log and warn about themselves; what matters of it comes back as an exception."""
    before = {name: logging.getLogger(name).level for name in LOUD}
    try:
        for name in LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _tidy(path: Path) -> int:
    """Takes out what the exporter notes about this machine (its paths, in stack traces); returns the opset."""
    import onnx

    model = onnx.load(str(path))
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.save(model, str(path))
    return next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _reason(error: Exception) -> str:
    """The innermost cause, in one line."""
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    lines: list[Any] = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return (lines[0] if lines else type(inner).__name__)[:400]
