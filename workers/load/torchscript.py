"""TorchScript: opened in the sandbox only, and kept as it was uploaded."""

from __future__ import annotations

import re
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from app.domain.records import Signature
from app.errors import BadArchitecture, BadCheckpoint, Problem, Unprocessable
from workers.load import signature

# What an integer argument may be tried as: numbers that the program itself compares with.
_NUMBER = re.compile(r"\b[0-9]{1,9}\b")
_MAX_TRIES = 24


def read(path: Path) -> torch.jit.ScriptModule:
    """The program, on the CPU, in eval mode. Raises BadCheckpoint."""
    try:
        # It works, and says on every call that it will go some day.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise BadCheckpoint(
            f"torch.jit.load cannot read it: {str(error).strip().splitlines()[0][:300]}",
            hint="save it again with torch.jit.save of a release of PyTorch that this installation can read",
        ) from error
    return module.eval()


def observe(module: torch.jit.ScriptModule, said: Signature | None, notes: list[str]) -> Signature:
    """The signature of the program: inputs as said, outputs by running it. Raises Unprocessable, BadArchitecture."""
    arguments = _arguments(module)
    if said is None:
        told = ", ".join(f"{name}: {kind}" for name, kind, _ in arguments)
        raise signature.missing(f"this TorchScript program takes ({told}), and")
    if len(said.inputs) > len(arguments):
        raise Unprocessable(
            f"the signature names {len(said.inputs)} inputs, the program takes {len(arguments)}", code="bad_signature"
        )
    problem: Problem | None = None
    for numbers in _tries(module, arguments[: len(said.inputs)]):
        try:
            return signature.outputs(partial(_call, module, arguments, numbers), said, None)
        except BadArchitecture as error:
            problem = problem or error
    assert problem is not None
    if not any(kind in ("int", "float", "bool") for _, kind, _ in arguments[: len(said.inputs)]):
        raise problem
    notes.append(f"its outputs are as the signature says: it could not be run on random numbers ({problem.detail})")
    return said


def _arguments(module: torch.jit.ScriptModule) -> list[tuple[str, str, Any]]:
    schema = module._c._get_method("forward").schema
    return [(a.name, str(a.type), a.type) for a in schema.arguments[1:]]


def _tries(module: torch.jit.ScriptModule, arguments: list[tuple[str, str, Any]]) -> list[tuple[int, ...]]:
    """Values for the integer arguments: they select something, such as a sampling rate; random ones select nothing."""
    places = [name for name, kind, _ in arguments if kind == "int"]
    if not places:
        return [()]
    seen = dict.fromkeys(int(n) for n in (*_NUMBER.findall(module.code), "1", "0"))
    return list(product(sorted(seen, reverse=True)[:_MAX_TRIES], repeat=len(places)))[:_MAX_TRIES]


def _call(
    module: torch.jit.ScriptModule,
    arguments: list[tuple[str, str, Any]],
    numbers: tuple[int, ...],
    inputs: tuple[torch.Tensor, ...],
) -> Any:
    """Runs it; where it takes plain numbers, `numbers` or what the tensors hold."""
    left = list(numbers)
    found: list[Any] = []
    for (_, kind, _), value in zip(arguments, inputs, strict=False):
        if kind == "int":
            found.append(left.pop(0))
        elif kind in ("float", "bool"):
            found.append({"float": float, "bool": bool}[kind](value.flatten()[0].item()))
        else:
            found.append(value)
    return module(*found)
