"""Weights in a file of torch.save: a state_dict, bare or wrapped in a checkpoint, of today or of years ago.

`torch.load(weights_only=True)` always. Classes that it does not know become stubs, from which tensors alone are taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import BadCheckpoint
from workers.load.stubs import Stub, is_module, named_globals, refuse_hostile, stub, tensors_of, unknown

# Under which keys checkpoints keep their weights, the likeliest first.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module", "model_state")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Weights:
    """state: name → dense CPU tensor. module: the pickled module itself, as stubs, where the file held one whole."""

    state: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    module: Stub | None = None


def read(path: Path) -> Weights:
    """The weights in a file of torch.save. Raises BadCheckpoint."""
    names = named_globals(path)
    refuse_hostile(names)
    strangers = {name: stub(name) for name in unknown(names)}
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(k, n) for n, k in strangers.items()]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise BadCheckpoint(
            f"torch.load(weights_only=True) cannot read it: {_first_line(error)}",
            hint="save the weights alone: torch.save(model.state_dict(), path), or as safetensors",
        ) from error
    return found_in(content, path.stat().st_size)


def found_in(content: Any, file_bytes: int) -> Weights:
    """The state_dict in what a file holds. Raises BadCheckpoint for one that holds none, or several."""
    notes: list[str] = []
    table, module = _search(content, notes)
    ignored = [str(k) for k, v in table.items() if not isinstance(v, torch.Tensor)]
    if ignored:
        notes.append(f"ignored {len(ignored)} entries that are no tensors ({', '.join(ignored[:4])})")
    state = {str(k): v.detach() for k, v in table.items() if isinstance(v, torch.Tensor)}
    _check_tensors(state, file_bytes)
    for prefix in (*_PREFIXES, *_PREFIXES):
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
            notes.append(f"stripped the prefix {prefix!r}")
    return Weights(_unmasked(state, notes), tuple(dict.fromkeys(notes)), module)


def align(state: dict[str, torch.Tensor], wanted: set[str], notes: list[str]) -> dict[str, torch.Tensor]:
    """Puts right one prefix that every key has, or lacks, against the names that the architecture has."""
    if not state or set(state) & wanted:
        return state
    first = next(iter(state)).split(".")[0] + "."
    if all(k.startswith(first) for k in state) and {k.removeprefix(first) for k in state} & wanted:
        notes.append(f"stripped the prefix {first!r}")
        return {k.removeprefix(first): v for k, v in state.items()}
    common = {w.split(".")[0] + "." for w in wanted}
    if len(common) == 1 and {(prefix := next(iter(common))) + k for k in state} & wanted:
        return {prefix + k: v for k, v in state.items()}
    return state


def _search(content: Any, notes: list[str], depth: int = 0) -> tuple[dict[Any, Any], Stub | None]:
    if is_module(content):
        notes.append(f"the file is a whole pickled {content.path}: its tensors were taken, its code was not run")
        return dict(tensors_of(content)), content
    if isinstance(content, list | tuple) and len(content) == 1 and depth < 6:
        notes.append("found in a list of one")
        return _search(content[0], notes, depth + 1)
    if isinstance(content, Mapping) and depth < 6:
        for key in _WRAPPERS:
            if key in content and _holds_weights(content[key]):
                notes.append(f"found under {key!r}")
                return _search(content[key], notes, depth + 1)
        if any(isinstance(v, torch.Tensor) for v in content.values()):
            return dict(content), None
        inner = [k for k, v in content.items() if _holds_weights(v)]
        if len(inner) == 1:
            notes.append(f"found under {inner[0]!r}")
            return _search(content[inner[0]], notes, depth + 1)
        if inner:
            raise BadCheckpoint(
                f"it holds several networks, under {', '.join(map(repr, inner[:8]))}",
                hint="upload the state_dict of one: torch.save(checkpoint[key], path)",
            )
    said = content.path if isinstance(content, Stub) else type(content).__name__
    raise BadCheckpoint(
        f"it holds no weights: a {said} was found",
        hint="upload a state_dict: torch.save(model.state_dict(), path), or a safetensors file",
    )


def _holds_weights(value: Any, depth: int = 0) -> bool:
    if is_module(value):
        return True
    if isinstance(value, list | tuple):
        return len(value) == 1 and depth < 3 and _holds_weights(value[0], depth + 1)
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(v, torch.Tensor) for v in value.values()) or (
        depth < 3 and any(_holds_weights(value[k], depth + 1) for k in _WRAPPERS if k in value)
    )


def _check_tensors(state: Mapping[str, torch.Tensor], file_bytes: int) -> None:
    if not state:
        raise BadCheckpoint("it holds no tensor", hint="upload a state_dict that holds the weights")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "on no device" if tensor.is_meta else "quantized" if tensor.is_quantized else f"{tensor.layout}"
            raise BadCheckpoint(f"the tensor {name!r} is {kind}: dense ones are taken", hint="save dense float weights")
    # A tensor may claim to be far larger than what is stored of it.
    claimed = sum(t.numel() * t.element_size() for t in state.values())
    if claimed > 4 * file_bytes + 2**20:
        raise BadCheckpoint(f"its tensors claim {claimed:,} bytes, the file has {file_bytes:,}")


def _unmasked(state: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Applies the masks that torch.nn.utils.prune leaves in a state_dict."""
    masked = [
        k.removesuffix("_orig") for k in state if k.endswith("_orig") and k.removesuffix("_orig") + "_mask" in state
    ]
    for name in masked:
        state[name] = state.pop(name + "_orig") * state.pop(name + "_mask")
    if masked:
        notes.append(f"made the pruning of {len(masked)} tensors permanent")
    return state


def _first_line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    first = said[0] if said else ""
    if "persistent_load of storage" in str(error):
        return "a whole module, pickled by an old release of PyTorch together with its source"
    if "Unsupported operand" in str(error):
        return "it is pickled in a protocol other than torch.save's own, or by another program"
    # The advice that torch adds here is how to run the file's code: not ours to repeat.
    if "Weights only load failed" in first or "weights_only" in first:
        first = next(
            (s for s in said if "Unsupported" in s or "WeightsUnpickler error" in s), "it is no plain checkpoint"
        )
    return f"{type(error).__name__}: {first[:300]}"
