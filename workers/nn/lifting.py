"""From a network that torch.fx cannot follow to a graph of torch.nn layers: what torch.export saw, in layers again.

torch.export follows the operations beneath the layers. Each that takes a layer's weights becomes that layer again, the
others the functions of torch that they are; what is not known here is refused, and what comes out is compared.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from enginesmith import allowed
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from workers.nn.export import silence
from workers.nn.proof import Broken, Example, distance, longer

_LAYERS = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "layer_norm": nn.LayerNorm,
    "group_norm": nn.GroupNorm,
    "batch_norm": nn.modules.batchnorm._BatchNorm,
    "embedding": nn.Embedding,
}
_KEYWORDS = {"dtype", "device", "alpha", "keepdim", "scale", "approximate", "value", "mode", "rounding_mode"}
_SAME = {"alias", "detach", "detach_", "lift_fresh_copy", "lift_fresh"}  # give what they are given


class NotLiftable(Exception):
    """What stands in the way."""


def lift(module: nn.Module, example: Example) -> fx.GraphModule:
    """A graph of the module's own layers, equal to it in eval mode for these inputs and for others of other sizes.

    Pictures (rows, channels, height, width) keep their size. Draws no dropout but that of the nn.Dropout layers.
    Raises NotLiftable, and whatever torch.export raises.
    """
    auto = torch.export.Dim.AUTO
    axes = [range(1) if _is_picture(t) else range(t.dim()) for t in example]
    sizes = tuple({a: auto for a in range(t.dim()) if a in some} for t, some in zip(example, axes, strict=True))
    with silence():
        exported = torch.export.export(module.eval(), example, dynamic_shapes=_by_name(module, sizes), strict=False)
    found = _Lifting(module, exported).run()
    for inputs in (example, longer(example), *_others(example, axes)):
        try:
            worst = distance(found, module, inputs)
        except Broken as error:
            raise NotLiftable(str(error)) from error
        if not worst < 1e-4:
            raise NotLiftable(f"its graph answers otherwise by {worst:.2g}")
    return found


def _is_picture(t: torch.Tensor) -> bool:
    return t.is_floating_point() and t.dim() == 4


def _by_name(module: nn.Module, sizes: tuple[Any, ...]) -> Any:
    import inspect

    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    return (sizes,) if kinds == [inspect.Parameter.VAR_POSITIONAL] else sizes


def _others(example: Example, axes: list[range]) -> list[Example]:
    """The same with one row, and with one less along each axis that may have another size."""
    found = [tuple(t[:1] if t.dim() else t for t in example)]
    for axis in range(1, max(t.dim() for t in example)):
        cuts = [axis in some and t.dim() > axis and t.shape[axis] > 1 for t, some in zip(example, axes, strict=True)]
        if any(cuts):
            pairs = zip(example, cuts, strict=True)
            found.append(tuple(t.narrow(axis, 0, t.shape[axis] - 1) if cut else t for t, cut in pairs))
    return found


class _Lifting:
    def __init__(self, module: nn.Module, exported: torch.export.ExportedProgram) -> None:
        self.module, self.exported = module, exported
        self.root = nn.Module()
        self.root.__dict__["_modules"] = dict(module._modules)
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, Any] = {}
        self.names: dict[fx.Node, str] = {}  # of parameters, buffers and constants
        self.first: fx.Node | None = None

    def run(self) -> fx.GraphModule:
        nodes = list(self.exported.graph.nodes)
        kinds = {s.arg.name: s for s in self.exported.graph_signature.input_specs}
        for node in nodes:
            if node.op == "placeholder":
                self._input(node, kinds[node.name])
            elif node.op == "call_function":
                self.nodes[node] = self._call(node)
            elif node.op == "output":
                flat = [self._mapped(a) for a in node.args[0]]
                self.graph.output(pytree.tree_unflatten(flat, self.exported.call_spec.out_spec))
            else:
                raise NotLiftable(f"its graph has a {node.op} ({node.target})")
        for found in reversed(self.graph.nodes):
            if not found.users and found.op not in ("placeholder", "output") and not str(found.target).endswith("_"):
                self.graph.erase_node(found)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, class_name="Network").train(self.module.training)

    def _input(self, node: fx.Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self.nodes[node] = self.graph.placeholder(node.name)
            self.first = self.first or self.nodes[node]
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            name = f"constant_{len(self.names)}"
            self.root.register_buffer(name, self.exported.constants[spec.target])
            self.names[node] = name
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            self.names[node] = spec.target
            if "." not in spec.target:
                (self.root._parameters if spec.kind == InputKind.PARAMETER else self.root._buffers)[spec.target] = (
                    getattr(self.module, spec.target)
                )
        else:
            raise NotLiftable(f"its graph takes a {spec.kind.name.lower()}")

    def _mapped(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, self._value)

    def _value(self, node: fx.Node) -> Any:
        if node in self.names and node not in self.nodes:
            self.nodes[node] = self.graph.get_attr(self.names[node])
        return self.nodes[node]

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        if not isinstance(target, torch._ops.OpOverload):
            if id(target) in allowed.function_names():
                return self.graph.call_function(target, self._mapped(node.args), self._mapped(node.kwargs))
            raise NotLiftable(f"its graph calls {getattr(target, '__name__', target)}")
        name = target._schema.name.partition("::")[2]
        if name.startswith(("_assert", "sym_constrain")):
            return None
        if name in _SAME:
            return self._mapped(node.args[0])
        if name in _LAYERS and (found := self._layer(name, node)) is not None:
            return found
        if name in ("dropout", "dropout_"):
            path = self._owner(node)
            x = self._mapped(node.args[0])
            drops = path is not None and type(self.module.get_submodule(path)) is nn.Dropout
            return self.graph.call_module(str(path), (x,)) if drops else x
        given = self._given(node)
        if name in _FORMS:
            return _FORMS[name](self, given)
        return self._function(name, given)

    def _given(self, node: fx.Node) -> dict[str, Any]:
        """Every argument by its name in the operation's schema, but those that are what they would be anyway."""
        target: Any = node.target
        found: dict[str, Any] = {}
        for place, argument in enumerate(target._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, default)
            if argument.name in ("layout", "pin_memory", "non_blocking", "copy", "memory_format"):
                continue
            if argument.has_default_value() and value == default and not isinstance(value, fx.Node):
                continue
            if isinstance(value, torch.device):
                found[argument.name] = self.graph.call_function(getattr, (self.first, "device"))
            else:
                found[argument.name] = self._mapped(value)
        return found

    def _function(self, name: str, given: dict[str, Any]) -> fx.Node:
        """A function of torch, of torch.nn.functional or a tensor's method of the same name."""
        name = name.strip("_") if name.startswith("__") else name
        first = [a for a in ("self", "input", "tensors") if a in given][:1]
        values = [given.pop(a) for a in first]
        rest = list(given.items())
        keywords = {k: v for k, v in rest if k in _KEYWORDS}
        values += [v for k, v in rest if k not in keywords]
        functions = allowed.functions()
        for prefix in ("torch", "torch.nn.functional", "operator"):
            for spelled in (name, f"{name}_"):
                if (target := functions.get(f"{prefix}.{spelled}")) is not None and not name.endswith("_"):
                    return self.graph.call_function(target, tuple(values), keywords)
        if name in allowed.METHODS and values:
            return self.graph.call_method(name, tuple(values), keywords)
        raise NotLiftable(f"its graph calls {name}")

    def _layer(self, name: str, node: fx.Node) -> fx.Node | None:
        """The layer whose weights these are, if it is one of torch.nn's and nothing else about it is odd."""
        owned = [self.names[n] for n in node.all_input_nodes if n in self.names]
        path = owned[0].rpartition(".")[0] if owned else ""
        layer = self.module.get_submodule(path)
        x = node.args[1] if name == "embedding" else node.args[0]
        if not path or not isinstance(layer, _LAYERS[name]) or not all(n.rpartition(".")[0] == path for n in owned):
            return None
        if type(layer) not in allowed.layer_names() or len(owned) < len(list(layer.parameters(recurse=False))):
            return None
        return self.graph.call_module(path, (self._mapped(x),))

    def _owner(self, node: fx.Node) -> str | None:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        try:
            self.module.get_submodule(path)
        except AttributeError:
            return None
        return path or None

    def sliced(self, given: dict[str, Any]) -> fx.Node:
        end = given.get("end")
        end = None if isinstance(end, int) and end >= 2**62 else end
        cut = slice(given.get("start"), end, given.get("step"))
        return self._item(given["self"], given.get("dim", 0), cut)

    def select(self, given: dict[str, Any]) -> fx.Node:
        return self._item(given["self"], given["dim"], given["index"])

    def _item(self, x: Any, dim: int, index: Any) -> fx.Node:
        where: Any = (*[slice(None)] * dim, index) if dim >= 0 else (Ellipsis, index, *[slice(None)] * (-dim - 1))
        return self.graph.call_function(operator.getitem, (x, where))

    def indexed(self, given: dict[str, Any]) -> fx.Node:
        index = tuple(slice(None) if i is None else i for i in given["indices"])
        return self.graph.call_function(operator.getitem, (given["self"], index))

    def sized(self, given: dict[str, Any]) -> fx.Node:
        return self.graph.call_method("size", (given["self"], given["dim"]))

    def cast(self, given: dict[str, Any]) -> Any:
        if "other" in given:
            return self.graph.call_method("type_as", (given["self"], given["other"]))
        kinds = {k: v for k, v in given.items() if k == "dtype" and v is not None}
        return self.graph.call_method("to", (given["self"],), kinds) if kinds else given["self"]

    def method(self, name: str) -> Callable[[dict[str, Any]], fx.Node]:
        def call(given: dict[str, Any]) -> fx.Node:
            named = {k: v for k, v in given.items() if k in _KEYWORDS}
            return self.graph.call_method(name, tuple(v for k, v in given.items() if k not in named), named)

        return call

    def attention(self, given: dict[str, Any]) -> fx.Node:
        target = nn.functional.scaled_dot_product_attention
        values = tuple(given.pop(k) for k in ("query", "key", "value"))
        return self.graph.call_function(target, values, given)


def _method(name: str) -> Callable[[_Lifting, dict[str, Any]], fx.Node]:
    return lambda lifting, given: lifting.method(name)(given)


_FORMS: dict[str, Callable[[_Lifting, dict[str, Any]], Any]] = {
    "slice": _Lifting.sliced,
    "select": _Lifting.select,
    "index": _Lifting.indexed,
    "sym_size": _Lifting.sized,
    "to": _Lifting.cast,
    "_to_copy": _Lifting.cast,
    "scaled_dot_product_attention": _Lifting.attention,
} | {name: _method(name) for name in ("view", "expand", "contiguous", "new_ones", "new_zeros", "repeat")}
