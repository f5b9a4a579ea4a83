"""From any network to a graph that can be cut: torch.fx's, with torch's own attention blocks written out."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx, nn

from workers.nn.unfold import unfold


def follow(
    module: nn.Module, example: tuple[torch.Tensor, ...], layers: Collection[str] | None = None
) -> tuple[fx.GraphModule, dict[str, str]]:
    """A graph that computes what `module` does, and for every block that is still one, why.

    Its layers have the names that they have in the module; it may share its weights: copy it before changing them.
    layers: blocks that none of these is in stay as they are. Raises whatever tracing the module raises.
    """
    graph = module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module)
    return unfold(graph, example, layers)
