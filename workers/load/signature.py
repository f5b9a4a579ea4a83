"""The inputs and outputs of a network: what the owner said, and what running it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from enginesmith import shapes
from pydantic import ValidationError
from torch import nn

from app.domain.records import Signature, Tensor
from app.errors import BadArchitecture, Problem, Unprocessable
from workers.net import example

_EXAMPLE = '"signature": {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 1, 28, 28]}]}; -1 is any size'


def given(data: dict[str, Any] | None) -> Signature | None:
    """What the manifest says; axis 0 is the batch exactly where its size is -1. Raises Unprocessable."""
    if data is None:
        return None
    try:
        said = Signature.model_validate(data)
    except ValidationError as error:
        raise Unprocessable(
            f"the signature is not well formed: {error.errors()[0]['msg']}",
            code="bad_signature",
            hint=_EXAMPLE,
            errors=[{"loc": ["signature", *e["loc"]], "msg": e["msg"]} for e in error.errors(include_url=False)],
        ) from None
    names = [t.name for t in said.inputs]
    if len(set(names)) != len(names):
        raise Unprocessable(f"two inputs of the signature have one name: {names}", code="bad_signature", hint=_EXAMPLE)
    return Signature(inputs=tuple(map(batched, said.inputs)), outputs=tuple(map(batched, said.outputs)))


def batched(tensor: Tensor) -> Tensor:
    """The tensor with its batch axis where the rule puts it: axis 0 if that is of any size."""
    axis = tensor.batch_axis if tensor.batch_axis and tensor.batch_axis < len(tensor.shape) else None
    return tensor.but(batch_axis=0 if tensor.shape[:1] == (-1,) else axis)


def missing(what: str) -> Unprocessable:
    """The error for weights that come without a signature."""
    return Unprocessable(
        f"{what} does not say what shape its inputs have: give a signature",
        code="signature_missing",
        hint=f"add to the manifest {_EXAMPLE}. For a model in Python, enginesmith.export(model, example) writes it",
    )


def observe(module: nn.Module, signature: Signature) -> Signature:
    """The signature with the outputs that the network really has. Raises BadArchitecture where it does not run."""
    return outputs(lambda inputs: module(*inputs), signature, module)


def outputs(
    run: Callable[[tuple[torch.Tensor, ...]], Any], signature: Signature, module: nn.Module | None
) -> Signature:
    """Runs at two sizes of every dynamic axis. run: inputs in order → what the network returns."""
    two = example(signature, module, batch=2)
    three = example(signature, module, batch=3, seed=1, wider=True)
    try:
        with torch.no_grad():
            first = run(two)
            second = run(three) if _dynamic(signature.inputs) else first
            found = shapes.outputs(first, second)
    except Problem:
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        raise BadArchitecture(
            f"the network does not run on {_told(signature.inputs)}: {type(error).__name__}: "
            f"{next((line for line in said if line.strip()), '')[:400]}",
            hint="correct the signature's shapes and dtypes, or the architecture; a size that is fixed must not be -1",
        ) from error
    return signature.but(outputs=tuple(_named(found, signature.outputs)))


def check_labels(signature: Signature, labels: Sequence[str] | None) -> None:
    """Raises Unprocessable where there are more or fewer labels than classes."""
    if not labels or len(signature.outputs) != 1 or len(signature.outputs[0].shape) != 2:
        return
    classes = signature.outputs[0].shape[1]
    if classes >= 0 and classes != len(labels):
        raise Unprocessable(
            f"{len(labels)} labels were given, and the network has {classes} classes",
            code="bad_labels",
            hint="give one label per class, in the order of the output",
        )


def _dynamic(tensors: Sequence[Tensor]) -> bool:
    return any(-1 in t.shape for t in tensors)


def _named(found: list[dict[str, Any]], said: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Takes over the names that the owner gave, once the shapes agree."""
    if not said:
        return found
    if len(said) != len(found):
        raise BadArchitecture(
            f"the signature has {len(said)} outputs ({', '.join(t.name for t in said)}), the network {len(found)}",
            hint="leave `outputs` away: they are found by running the network",
        )
    for tensor, real in zip(said, found, strict=True):
        agree = len(tensor.shape) == len(real["shape"]) and all(
            a == b or -1 in (a, b) for a, b in zip(tensor.shape, real["shape"], strict=True)
        )
        if not agree or tensor.dtype != real["dtype"]:
            raise BadArchitecture(
                f"the output {tensor.name!r} is {real['dtype']} {real['shape']}, the signature says "
                f"{tensor.dtype} {list(tensor.shape)}",
                hint="leave `outputs` away: they are found by running the network",
            )
    return [real | {"name": tensor.name} for tensor, real in zip(said, found, strict=True)]


def _told(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{t.name}: {t.dtype} {list(t.shape)}" for t in tensors)
