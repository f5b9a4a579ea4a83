"""What forward does differently in training: functional dropout becomes a layer, which follows train() and eval()."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn
from torch.nn import functional

from .graph import NotExpressible, line_of

_DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def follow_training(module: fx.GraphModule, trained: fx.Graph | None, notes: list[str]) -> None:
    """Rewrites the graph of eval mode in `module`, given the graph of training mode where there is one.

    Raises NotExpressible for a dropout that is on in eval mode too.
    """
    pairs = _pairs(module.graph, trained)
    if pairs is None:
        notes.append("forward takes another way in training mode: the network as data is that of eval mode, in both")
    for node in list(module.graph.nodes):
        kind = _DROPOUTS.get(node.target) if node.op == "call_function" else None
        twin = pairs.get(node) if pairs else None
        if kind is not None:
            _replace(module, node, kind, _bound(node), _bound(twin) if twin is not None else None)
        elif twin is not None and _constants(node) != _constants(twin):
            notes.append(
                f"{_name(node)} takes other constants in training mode: those of eval mode were kept"
                + (f" ({line})" if (line := line_of(node)) else "")
            )


def _pairs(graph: fx.Graph, trained: fx.Graph | None) -> dict[fx.Node, fx.Node] | None:
    if trained is None:
        return None
    mine, its = list(graph.nodes), list(trained.nodes)
    if [_step(n) for n in mine] != [_step(n) for n in its]:
        return None
    return dict(zip(mine, its, strict=True))


def _step(node: fx.Node) -> tuple[str, Any]:
    # Constants made in forward get a new name each time they are seen.
    return node.op, "" if str(node.target).startswith("_tensor_constant") else node.target


def _replace(
    module: fx.GraphModule, node: fx.Node, kind: type[nn.Module], facts: dict[str, Any], trained: dict[str, Any] | None
) -> None:
    if facts["training"]:
        raise NotExpressible(
            f"{_name(node)} drops values in eval mode too",
            line=line_of(node),
            hint="pass training=self.training",
        )
    source = facts["input"]
    if trained is None or not trained["training"]:
        # Off in both modes, or nothing known of training mode: it does nothing.
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        return
    path = node.name
    while hasattr(module, path):
        path += "_layer"
    module.add_submodule(path, kind(p=trained["p"]))
    with module.graph.inserting_before(node):
        layer = module.graph.call_module(path, (source,))
    node.replace_all_uses_with(layer)
    module.graph.erase_node(node)


def _bound(node: fx.Node) -> dict[str, Any]:
    assert callable(node.target)
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _constants(node: fx.Node) -> Any:
    return fx.node.map_arg((node.args, node.kwargs), lambda n: None)


def _name(node: fx.Node) -> str:
    return f"{getattr(node.target, '__name__', node.target)!r} (node {node.name!r})"
