"""Puts tensors into a network and says precisely where they do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from app.errors import BadArchitecture, BadCheckpoint

# How many differing keys a message names.
_NAMED = 6
_COUNTER = "num_batches_tracked"


def fit(module: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Gives `module`, which may lie on the meta device, these weights. Returns notes on what was put right.

    Floating-point weights take the network's own dtype. Raises BadArchitecture naming the first keys that differ.
    """
    wanted = module.state_dict(keep_vars=True)
    groups = _groups(wanted)
    missing = [
        name for name in wanted if not name.endswith(_COUNTER) and not any(other in state for other in groups[name])
    ]
    unexpected = [name for name in state if name not in wanted and name.rpartition(".")[2] != _COUNTER]
    shapes = [n for n in wanted if n in state and tuple(state[n].shape) != tuple(wanted[n].shape)]
    if missing or unexpected or shapes:
        raise _mismatch(wanted, state, missing, unexpected, shapes)
    notes, values = [], {}
    converted: set[str] = set()
    for name, target in wanted.items():
        source = next((state[n] for n in groups[name] if n in state), None)
        if source is None:
            values[name] = torch.zeros(target.shape, dtype=target.dtype)
            continue
        if source.dtype != target.dtype:
            if source.is_floating_point() != target.is_floating_point() or source.is_complex() != target.is_complex():
                raise BadArchitecture(
                    f"the tensor {name!r} is {source.dtype}, the architecture has {target.dtype} there"
                )
            converted.add(f"{source.dtype} to {target.dtype}".replace("torch.", ""))
        values[name] = source.detach().to(target.dtype)
    _assign(module, wanted, values, groups)
    if converted:
        notes.append(f"weights were converted from {', '.join(sorted(converted))}")
    dropped = [name for name in state if name not in wanted]
    if dropped:
        notes.append(f"ignored {len(dropped)} counters ({dropped[0]} …)")
    return notes


def check_numbers(state: Mapping[str, torch.Tensor]) -> None:
    """Raises BadCheckpoint naming the first tensor that holds NaN. Infinity is common, in masks."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            count = int(torch.isnan(tensor).sum())
            raise BadCheckpoint(
                f"the tensor {name!r} holds {count} values that are NaN, of {tensor.numel()}",
                hint="upload a checkpoint from before the training diverged",
            )


def save(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """One safetensors file; tensors that share memory are written once each."""
    from safetensors.torch import save_file

    seen: set[tuple[object, ...]] = set()
    kept = {}
    for name, tensor in state.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor.detach().cpu().contiguous().clone()
    save_file(kept, path)


def _groups(wanted: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """name → itself first, then the other names of the same tensor."""
    same: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        same.setdefault(id(tensor), []).append(name)
    return {name: [name, *(n for n in same[id(tensor)] if n != name)] for name, tensor in wanted.items()}


def _assign(
    module: nn.Module,
    wanted: Mapping[str, torch.Tensor],
    values: Mapping[str, torch.Tensor],
    groups: Mapping[str, list[str]],
) -> None:
    made: dict[str, torch.Tensor] = {}
    for name, target in wanted.items():
        first = next((n for n in groups[name] if n in made), None)
        if first is not None:
            value = made[first]
        elif isinstance(target, nn.Parameter):
            value = nn.Parameter(values[name].clone(), requires_grad=target.requires_grad)
        else:
            value = values[name].clone()
        made[name] = value
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, value)
    stranded = [n for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    if stranded:
        raise BadArchitecture(f"the tensors {_listed(stranded)} are in no checkpoint: the network cannot be rebuilt")


def _mismatch(
    wanted: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
) -> BadArchitecture:
    said = []
    if missing:
        said.append(f"{len(missing)} missing in the checkpoint ({_listed(missing)})")
    if unexpected:
        said.append(f"{len(unexpected)} unknown to the architecture ({_listed(unexpected)})")
    if shapes:
        told = [
            f"{n}: {list(state[n].shape)} in the checkpoint, {list(wanted[n].shape)} in the architecture"
            for n in shapes
        ]
        said.append(f"{len(shapes)} of another shape ({'; '.join(told[:_NAMED])}{' …' if len(told) > _NAMED else ''})")
    errors = [
        *({"loc": ["weights", n], "msg": "missing in the checkpoint"} for n in missing[:_NAMED]),
        *({"loc": ["weights", n], "msg": "unknown to the architecture"} for n in unexpected[:_NAMED]),
        *(
            {
                "loc": ["weights", n],
                "msg": f"{list(state[n].shape)} in the checkpoint, {list(wanted[n].shape)} expected",
            }
            for n in shapes[:_NAMED]
        ),
    ]
    return BadArchitecture(
        f"the weights do not fit the architecture: {'; '.join(said)}",
        hint="change the architecture to the checkpoint's own names and shapes"
        + (
            '; in the sequential form a layer\'s name is its place, or its "name": '
            f'{{"type": …, "name": {_first_layer(unexpected)!r}}}'
            if missing and unexpected
            else ""
        ),
        errors=errors,
    )


def _first_layer(names: Iterable[str]) -> str:
    return next(iter(names), "conv1.weight").rpartition(".")[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
