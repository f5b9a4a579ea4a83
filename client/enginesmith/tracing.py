"""Follows an owner's nn.Module with torch.fx, on the owner's machine, and says where it cannot be followed."""

from __future__ import annotations

import inspect
import linecache
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _maybe_revert_all_patches

from . import allowed
from .graph import NotExpressible, line_of

# Functions that make a tensor from sizes: torch.fx does not see them, since no argument of theirs is a tensor.
_FACTORIES = ("arange", "zeros", "ones", "full", "eye", "linspace", "tensor", "as_tensor")
# Called without a tensor they would be frozen into one constant.
_RANDOM = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "empty")
_SIZES = frozenset({"size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_complex"})
_FACTS = frozenset({"shape", "ndim", "dtype", "device", "is_cuda"})
_CONTROL = "a network as data has one fixed list of operations: use torch.where, masks, or push TorchScript or ONNX"


def trace(
    model: nn.Module, inputs: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> tuple[fx.Graph, list[str]]:
    """The graph of `model.forward` in the mode that the model is in, and notes on what the examples' shapes decided.

    inputs: parameter of forward → its tensor, or the constant that it always gets. examples: the same inputs at
    different sizes; a branch on sizes is followed only if all agree. Raises NotExpressible.
    """
    tracer = _Tracer(inputs, examples)
    try:
        with _watched():
            graph = tracer.trace(model)
    except NotExpressible:
        raise
    except Exception as error:
        raise NotExpressible(
            f"{type(model).__name__} cannot be followed: {_plainly(error)}",
            line=_owners_line(error.__traceback__),
            hint=_CONTROL,
        ) from error
    _check_state(model)
    _drop_assertions(graph)
    return graph, tracer.notes


class _Tracer(fx.Tracer):
    def __init__(self, inputs: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.inputs = inputs
        self.examples = examples
        self.values: dict[fx.Node, list[Any]] = {}
        self.notes: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in allowed.layer_names()

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

    def to_bool(self, obj: fx.Proxy) -> bool:
        found = self._sizes_say(obj)
        if found is None or len({bool(v) for v in found}) != 1:
            why = "the values of a tensor" if found is None else "the batch size"
            raise NotExpressible(
                f"control flow (if, while, assert, and, or) on {why}: {obj.node.format_node() or obj.node}",
                line=_here() or line_of(obj.node),
                hint=_CONTROL,
            )
        self.notes.append(f"a branch was decided by the example's shape: {_here() or obj.node.name}")
        return bool(found[0])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            found = self._sizes_say(obj)
            if found is None or len({len(v) for v in found}) != 1:
                raise NotExpressible(
                    f"a loop over a tensor, or a star before one: {obj.node.format_node() or obj.node}",
                    line=_here() or line_of(obj.node),
                    hint="a network as data has one fixed list of operations: use unbind, split or chunk",
                ) from None
            item = operator.getitem
            return iter([obj.tracer.create_proxy("call_function", item, (obj, n), {}) for n in range(len(found[0]))])

    def _sizes_say(self, obj: fx.Proxy) -> list[Any] | None:
        """What a value that depends on shapes alone is for each example; None for any other value."""
        if not _of_sizes(obj.node) or not self.examples:
            return None
        try:
            found = [self._value(obj.node, place) for place in range(len(self.examples))]
        except Exception:
            return None
        return None if any(isinstance(v, fx.Proxy) for v in found) else found

    def _value(self, node: fx.Node, place: int) -> Any:
        """Runs the graph so far on an example; placed here since it must stop at the node in question."""
        for known in self.graph.nodes:
            if known not in self.values:
                self.values[known] = [_run(self, known, n) for n in range(len(self.examples))]
            if known is node:
                break
        return self.values[node][place]


def _run(tracer: _Tracer, node: fx.Node, place: int) -> Any:
    if node.op == "placeholder":
        return tracer.examples[place][str(node.target)]
    args = fx.node.map_arg(node.args, lambda n: tracer.values[n][place])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: tracer.values[n][place])
    with torch.no_grad(), _unwatched():
        if node.op == "get_attr":
            found: Any = tracer.root
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return found
        if node.op == "call_module":
            layer = tracer.root.get_submodule(str(node.target))
            return type(layer).forward(layer, *args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


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


_ACTIVE: list[dict[str, Any]] = []


@contextmanager
def _watched() -> Iterator[None]:
    """While tracing: functions that make tensors from sizes are recorded; randomness and custom autograd, refused."""
    originals = {name: getattr(torch, name) for name in (*_FACTORIES, *_RANDOM)}
    apply = torch.autograd.Function.__dict__.get("apply")
    for name in _FACTORIES:
        setattr(torch, name, _recorded(originals[name]))
    for name in _RANDOM:
        setattr(torch, name, _refused(f"torch.{name}", "draws random or undefined numbers in forward"))
    by_hand = _refused("torch.autograd.Function.apply", "is a gradient written by hand, which is code")
    type.__setattr__(torch.autograd.Function, "apply", by_hand)
    _ACTIVE.append(originals)
    try:
        yield
    finally:
        _ACTIVE.pop()
        for name, function in originals.items():
            setattr(torch, name, function)
        if apply is None:
            type.__delattr__(torch.autograd.Function, "apply")
        else:
            type.__setattr__(torch.autograd.Function, "apply", apply)


@contextmanager
def _unwatched() -> Iterator[None]:
    """Inside `_watched`: torch as it is, to run a part of the graph."""
    watched = {name: getattr(torch, name) for name in _ACTIVE[-1]} if _ACTIVE else {}
    for name in watched:
        setattr(torch, name, _ACTIVE[-1][name])
    try:
        # torch.fx itself turns every parameter that a layer looks up into a step of the graph.
        with _maybe_revert_all_patches():
            yield
    finally:
        for name, function in watched.items():
            setattr(torch, name, function)


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxies: list[fx.Proxy] = []
        fx.node.map_aggregate((args, kwargs), lambda v: proxies.append(v) if isinstance(v, fx.Proxy) else v)
        if not proxies:
            return function(*args, **kwargs)
        return proxies[0].tracer.create_proxy("call_function", function, args, kwargs)

    return call


def _refused(name: str, why: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise NotExpressible(f"{name} {why}", line=_here(), hint="a network as data always gives the same answer")

    return call


def _check_state(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, fx.Proxy):
                delattr(module, name)
                raise NotExpressible(
                    f"forward keeps a tensor in self.{name} of {path or type(module).__name__!r}",
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


def _is_owners(file: str) -> bool:
    ours = file.startswith(str(__file__).rsplit("/", 1)[0] + "/")
    return not ours and "/torch/" not in file and not file.startswith("<") and not file.endswith("contextlib.py")


def _here() -> str | None:
    """The innermost line of the owner's that is running now."""
    frame = inspect.currentframe()
    while frame is not None:
        if _is_owners(frame.f_code.co_filename):
            return _line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def _owners_line(trace: TracebackType | None) -> str | None:
    found = None
    while trace is not None:
        if _is_owners(trace.tb_frame.f_code.co_filename):
            found = _line(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found


def _line(file: str, number: int) -> str:
    return f"{file}:{number}: {linecache.getline(file, number).strip()}".rstrip(": ")


def _plainly(error: Exception) -> str:
    said = str(error).split("\n")[0]
    if "Proxy" in said and isinstance(error, TypeError):
        return f"a number or a shape is needed where only tensors flow ({said})"
    return f"{type(error).__name__}: {said}"
