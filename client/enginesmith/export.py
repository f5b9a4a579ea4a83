"""`export`: an nn.Module of one's own → data that travels without its code.

Everything that needs torch is imported inside the functions: a client that only predicts has no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import shapes
from .graph import NotExpressible, describe, line_of, weights

if TYPE_CHECKING:
    import torch
    from torch import fx, nn


@dataclass(frozen=True)
class Exported:
    """architecture and signature: JSON data. weights: the bytes of a safetensors file. notes: what was decided."""

    architecture: dict[str, Any]
    signature: dict[str, Any]
    weights: bytes
    notes: tuple[str, ...] = ()

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights as tensors, by name."""
        from safetensors.torch import load

        return load(self.weights)


def export(
    model: nn.Module,
    example: Any,
    *,
    names: Sequence[str] | None = None,
    dynamic: Mapping[str, Sequence[int]] | None = None,
) -> Exported:
    """Follows `model` on an example and writes it down as a list of torch.nn layers and allowed functions.

    example: one input tensor (or array), a tuple of them in the order of forward's parameters, or a dict by name; what
    is no tensor is taken as a constant. names: names for the inputs, else those of forward's parameters. dynamic: input
    → its axes of any size; axis 0, the batch, unless given; `{}` for none. Raises NotExpressible naming operation and
    line.
    """
    import torch
    from safetensors.torch import save

    from .tracing import trace

    model = _unwrapped(model)
    _refuse_parametrized(model)
    given = _inputs(model, example, names)
    axes = {n: list((dynamic or {}).get(n, ())) if dynamic is not None else [0] for n in given}
    notes: list[str] = []
    with _float32(model, notes) as model, _modes(model), torch.no_grad():
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        given = {n: _placed(v, device) for n, v in given.items()}
        larger = {n: _larger(v, axes[n]) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        model.train()
        trained = _attempt(lambda: trace(model, given, [given, larger])[0])
        model.eval()
        graph, found = trace(model, given, [given, larger])
        notes += found
        module = _module(model, graph, trained, notes)
        architecture = describe(_renamed(module, given, names))
        module.eval()
        outputs = _compare(model, module, given, larger, axes)
        content = save(weights(module, architecture))
    tensors = {n: v for n, v in given.items() if isinstance(v, torch.Tensor)}
    called = dict(zip(tensors, names or tensors, strict=True))
    signature = {"inputs": [shapes.tensor(called[n], v, axes[n]) for n, v in tensors.items()], "outputs": outputs}
    return Exported(architecture, signature, content, tuple(dict.fromkeys(notes)))


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without DataParallel and torch.compile around it."""
    import torch

    while True:
        if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        elif isinstance(model, torch.jit.ScriptModule):
            raise NotExpressible(
                "this is TorchScript, whose code cannot be followed", hint="push the saved .pt file itself"
            )
        elif not isinstance(model, torch.nn.Module):
            raise NotExpressible(f"a {type(model).__name__} is no torch.nn.Module")
        else:
            return model


def _refuse_parametrized(model: nn.Module) -> None:
    from torch.nn.utils.parametrize import is_parametrized

    for path, module in model.named_modules():
        if is_parametrized(module):
            raise NotExpressible(
                f"the layer {path!r} computes its weights in code (a parametrization, such as weight_norm)",
                hint="make it plain first: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')",
            )


def _inputs(model: nn.Module, example: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """forward's parameter → example."""
    import torch

    if isinstance(example, Mapping):
        given: tuple[Any, ...] = ()
        named = dict(example)
    else:
        given, named = tuple(example) if isinstance(example, tuple | list) else (example,), {}
    try:
        bound = inspect.signature(model.forward).bind(*given, **named)
    except TypeError as error:
        raise NotExpressible(f"forward of {type(model).__name__} does not take this example: {error}") from None
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}_{place}": v for place, v in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    found = {
        n: torch.as_tensor(v) if hasattr(v, "__array__") and not isinstance(v, torch.Tensor) else v
        for n, v in found.items()
    }
    count = sum(isinstance(v, torch.Tensor) for v in found.values())
    if not count:
        raise NotExpressible("the example holds no tensor", hint="export(model, torch.randn(1, 3, 224, 224))")
    if names is not None and (len(names) != count or len(set(names)) != count):
        raise NotExpressible(f"{len(names)} names for {count} input tensors")
    return found


@contextmanager
def _float32(model: nn.Module, notes: list[str]) -> Iterator[nn.Module]:
    """The model itself, or a float32 copy of one that computes in another precision."""
    import copy

    import torch

    odd = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} - {torch.float32}
    if odd:
        notes.append(f"weights of {', '.join(sorted(map(str, odd)))} were converted to float32")
        model = copy.deepcopy(model).float()
    yield model


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    """Puts every module back into the mode that it was in."""
    before = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
        # Tracing hangs the constants that forward makes on the model.
        for name in [n for n in vars(model) if n.startswith("_tensor_constant")]:
            delattr(model, name)


def _placed(value: Any, device: torch.device) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().to(device)
    return value.float() if value.dtype in (torch.float64, torch.float16, torch.bfloat16) else value


def _larger(value: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    import torch

    for axis in axes:
        if not 0 <= axis < value.ndim:
            if axis == 0 and value.ndim == 0:
                continue
            raise NotExpressible(f"axis {axis} of an input with shape {tuple(value.shape)} cannot be dynamic")
        value = torch.cat([value, value], dim=axis)
    return value


def _attempt(make: Any) -> Any:
    """What training mode looks like, where it can be followed at all: eval mode decides."""
    try:
        return make()
    except NotExpressible:
        return None


def _module(model: nn.Module, graph: fx.Graph, trained: fx.Graph | None, notes: list[str]) -> fx.GraphModule:
    from torch import fx

    from .modes import follow_training

    module = fx.GraphModule(model, graph)
    follow_training(module, trained, notes)
    module.recompile()
    return module


def _renamed(module: fx.GraphModule, given: Mapping[str, Any], names: Sequence[str] | None) -> fx.GraphModule:
    if names is not None:
        holders = [n for n in module.graph.nodes if n.op == "placeholder"]
        for node, name in zip(holders, names, strict=True):
            node.target = name
        module.recompile()
    return module


def _compare(
    model: nn.Module,
    module: fx.GraphModule,
    given: Mapping[str, Any],
    larger: Mapping[str, Any],
    axes: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Runs both at two sizes; the signature's outputs. Raises NotExpressible where data and code disagree."""
    import torch

    answers = []
    for size, inputs in (("the example", given), ("twice the example's batch", larger)):
        copies = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        try:
            wanted = _call(model, copies)
        except Exception as error:
            raise NotExpressible(
                f"{type(model).__name__} itself fails on {size}: {type(error).__name__}: {str(error)[:300]}",
                hint="say which axes may vary with dynamic={name: [axes]}, or dynamic={} for none",
            ) from error
        tensors = [v.clone() for v in inputs.values() if isinstance(v, torch.Tensor)]
        try:
            found = module(*tensors)
        except Exception as error:
            raise NotExpressible(
                f"what was followed fails on {size}: {type(error).__name__}: {str(error)[:300]}",
                line=_failing_line(module, error),
                hint="a size was probably taken from the example: use x.size(0) or -1 for the batch",
            ) from error
        _equal(wanted, found, size)
        answers.append(found)
    try:
        return shapes.outputs(*answers)
    except (TypeError, ValueError) as error:
        raise NotExpressible(str(error)) from None


def _call(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values()):
        return model(*inputs.values())
    return model(**inputs)


def _equal(wanted: Any, found: Any, size: str) -> None:
    import torch

    try:
        one, two = shapes.flatten(wanted)[0], shapes.flatten(found)[0]
    except TypeError as error:
        raise NotExpressible(str(error), hint="return a tensor, a tuple of tensors, or a dict of tensors") from None
    same = len(one) == len(two) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6, equal_nan=True)
        for a, b in zip(one, two, strict=True)
    )
    if not same:
        raise NotExpressible(
            f"what was followed answers differently from the model itself on {size}",
            hint="forward depends on something else than its inputs, or on their sizes",
        )


def _failing_line(module: fx.GraphModule, error: Exception) -> str | None:
    del error
    return next(
        (line_of(n) for n in module.graph.nodes if n.op == "call_method" and n.target in ("view", "reshape")), None
    )
