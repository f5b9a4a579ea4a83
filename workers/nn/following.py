"""From any network to a graph that can be cut: torch.fx's or torch.export's, torch's attention blocks written out."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx, nn

from workers.nn.lifting import lift
from workers.nn.unfold import unfold


def follow(
    module: nn.Module, example: tuple[torch.Tensor, ...], layers: Collection[str] | None = None
) -> tuple[fx.GraphModule, dict[str, str]]:
    """A graph that computes what `module` does, and for every block that is still one, why.

    Its layers have the names that they have in the module; it may share its weights: copy it before changing them.
    layers: blocks that none of these is in stay as they are. Raises what torch.fx raises where it cannot follow the
    module, if torch.export cannot either.
    """
    return unfold(graph_of(module, example), example, layers)


def graph_of(module: nn.Module, example: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """The same without writing out any block."""
    if isinstance(module, fx.GraphModule):
        return module
    try:
        return fx.symbolic_trace(module)
    except Exception as unfollowed:  # torch.fx raises whatever a network's own forward raises when it is traced
        try:
            return lift(module, example)
        except Exception as error:  # and so does torch.export
            raise unfollowed from error
