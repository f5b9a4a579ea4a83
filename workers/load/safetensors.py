"""Weights in a safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch

from app.errors import BadCheckpoint
from workers.load.state_dict import Weights, found_in


def read(path: Path) -> Weights:
    """Every tensor of the file. Raises BadCheckpoint."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise BadCheckpoint(
            f"the safetensors file cannot be read: {str(error).splitlines()[0][:300]}", hint="upload it again, whole"
        ) from error
    return found_in(content, path.stat().st_size)
