"""Follows an owner's nn.Module with torch.fx, on the owner's machine, and says where it cannot be followed."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from . import allowed
from .graph import NotExpressible, line_of
from .watching import here, owners_line, unwatched, watched

_SIZES = frozenset({"size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_complex"})
_FACTS = frozenset({"shape", "ndim", "dtype", "device", "is_cuda"})
_CONTROL = "a network as data has one fixed list of operations: use torch.where or masks, or push TorchScript or ONNX"


def trace(
    model: nn.Module, inputs: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> tuple[fx.Graph, list[str]]:
    """The graph of `model.forward` in the mode that the model is in, and notes on what the examples' shapes decided.

    inputs: parameter of forward → its tensor, or the constant that it always gets. examples: the same inputs at
    different sizes; a branch on sizes is followed only if all agree. Raises NotExpressible.
    """
    tracer = _Tracer(inputs, examples)
    try:
        with _stateless(model), watched():
            graph = tracer.trace(model)
    except NotExpressible:
        raise
    except Exception as error:
        raise NotExpressible(
            f"{type(model).__name__} cannot be followed: {_plainly(error)}",
            line=owners_line(error.__traceback__),
            hint=_CONTROL,
        ) from error
    _drop_assertions(graph)
    return graph, tracer.notes


class _Proxy(fx.Proxy):
    """What flows through forward while it is followed. A size that all examples share may be used as a plain number."""

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)

    def __len__(self) -> int:
        return int(self._number("a length", len))

    def __index__(self) -> int:
        # torch asks every argument for it and goes on without it; range() does not.
        assert isinstance(self.tracer, _Tracer)
        try:
            return int(self.tracer.settle(self, "an integer", operator.index, note=False))
        except NotExpressible as error:
            raise TypeError(error.detail) from None

    def __int__(self) -> int:
        return int(self._number("an integer", int))

    def __float__(self) -> float:
        return float(self._number("a number", float))

    def _number(self, what: str, of: Callable[[Any], Any]) -> Any:
        assert isinstance(self.tracer, _Tracer)
        return self.tracer.settle(self, what, of)


class _Attribute(fx.proxy.Attribute, _Proxy):
    """`x.shape`, or `x.size` before it is called."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, inputs: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.inputs = inputs
        self.examples = [
            {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in given.items()} for given in examples
        ]
        self.values: dict[fx.Node, list[Any]] = {}
        self.notes: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in allowed.layer_names()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # Their own forward looks for shortcuts in the values of its tensors.
        if type(m) in _STACKS:
            forward = partial(_STACKS[type(m)], m)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Inputs that have an example become placeholders; everything else keeps its default."""
        given = {
            name: self.create_proxy("placeholder", name, (), {}) if isinstance(value, torch.Tensor) else value
            for name, value in self.inputs.items()
        }
        if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in _parameters(root_fn)):
            return (lambda *_: root_fn(self.root, *given.values())), []
        return (lambda *_: root_fn(self.root, **given)), []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.settle(obj, "control flow (if, while, assert, and, or)", bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            pass
        found = self._values_of(obj)
        lengths = {len(v) for v in found if isinstance(v, tuple | list)}
        if len(lengths) != 1 or any(isinstance(v, torch.Tensor) for v in found):
            raise NotExpressible(
                f"a loop over a tensor, or a star before one: {_told(obj.node)}",
                line=here() or line_of(obj.node),
                hint="a network as data has one fixed list of operations: use unbind, split or chunk",
            )
        item = operator.getitem
        return iter([self.create_proxy("call_function", item, (obj, n), {}) for n in range(lengths.pop())])

    def settle(self, obj: fx.Proxy, what: str, of: Callable[[Any], Any], note: bool = True) -> Any:
        """The one value that `of` has for every example, if it follows from shapes alone. Raises NotExpressible."""
        said = self._values_of(obj) if _of_sizes(obj.node) or of is len else []
        if of is len and any(isinstance(v, torch.Tensor) for v in said):
            said = []
        found = {of(v) for v in said}
        if len(found) != 1:
            why = "sizes that vary, such as the batch" if found else "the values of a tensor"
            raise NotExpressible(
                f"{what} that depends on {why}: {_told(obj.node)}", line=here() or line_of(obj.node), hint=_CONTROL
            )
        if note:
            self.notes.append(f"{what} was settled by the example's shape: {here() or obj.node.name}")
        return found.pop()

    def _values_of(self, obj: fx.Proxy) -> list[Any]:
        """What a value is for each example; nothing where it cannot be told."""
        try:
            found = [self._value(obj.node, place) for place in range(len(self.examples))]
        except Exception:
            return []
        return [] if any(isinstance(v, fx.Proxy) for v in found) else found

    def _value(self, node: fx.Node, place: int) -> Any:
        """Runs the graph so far on an example; placed here since it must stop at the node in question."""
        for known in self.graph.nodes:
            if known not in self.values:
                self.values[known] = [_run(self, known, n) for n in range(len(self.examples))]
            if known is node:
                break
        return self.values[node][place]


def _encoder(
    stack: nn.TransformerEncoder,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    for layer in stack.layers:
        src = layer(
            src,
            src_mask=mask,
            src_key_padding_mask=src_key_padding_mask,
            is_causal=bool(is_causal) and mask is not None,
        )
    return src if stack.norm is None else stack.norm(src)


def _decoder(stack: nn.TransformerDecoder, tgt: Any, memory: Any, *masks: Any, **named: Any) -> Any:
    for layer in stack.layers:
        tgt = layer(tgt, memory, *masks, **{k: v for k, v in named.items() if v is not None})
    return tgt if stack.norm is None else stack.norm(tgt)


_STACKS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
}


def _run(tracer: _Tracer, node: fx.Node, place: int) -> Any:
    if node.op == "placeholder":
        return tracer.examples[place][str(node.target)]
    args = fx.node.map_arg(node.args, lambda n: tracer.values[n][place])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: tracer.values[n][place])
    with torch.no_grad(), unwatched():
        if node.op == "get_attr":
            found: Any = tracer.root
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return found.clone()
        if node.op == "call_module":
            # In eval mode: looking must not count batches.
            layer = tracer.root.get_submodule(str(node.target))
            training, layer.training = layer.training, False
            try:
                return type(layer).forward(layer, *args, **kwargs)
            finally:
                layer.training = training
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _told(node: fx.Node) -> str:
    return (node.format_node() or str(node)).split(" : ")[-1]


def _of_sizes(node: fx.Node) -> bool:
    """Whether a value follows from the shapes and dtypes of tensors, whatever is in them."""
    if node.op == "call_method" and node.target in _SIZES:
        return True
    if node.op != "call_function":
        return False
    name = allowed.function_names().get(id(node.target), "")
    if name == "builtins.getattr" and node.args[1] in _FACTS:
        return True
    return name.startswith(("operator.", "math.", "builtins.")) and all(_of_sizes(n) for n in node.all_input_nodes)


@contextmanager
def _stateless(model: nn.Module) -> Iterator[None]:
    """Raises NotExpressible where forward kept something on a module, and takes it off again."""
    tables = [
        (path, module, table, dict(table))
        for path, module in model.named_modules()
        for table in (vars(module), module._buffers, module._parameters)
    ]
    kept: list[tuple[str, str, fx.Proxy]] = []
    try:
        yield
    finally:
        for path, module, table, before in tables:
            for name, value in list(table.items()):
                if isinstance(value, fx.Proxy):
                    kept.append((path or type(module).__name__, name, value))
                    if name in before:
                        table[name] = before[name]
                    else:
                        del table[name]
    if kept:
        path, name, value = kept[0]
        raise NotExpressible(
            f"forward keeps a tensor in self.{name} of {path!r}",
            line=line_of(value.node),
            hint="a network as data keeps no state between calls: return it instead",
        )


def _drop_assertions(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        checks = node.op == "call_function" and node.target is torch._assert
        if not node.users and (checks or _of_sizes(node)):
            graph.erase_node(node)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _plainly(error: Exception) -> str:
    said = str(error).split("\n")[0]
    if "Proxy" in said and isinstance(error, TypeError):
        return f"a number or a shape is needed where only tensors flow ({said})"
    return f"{type(error).__name__}: {said}"
