"""While forward is followed: what torch.fx does not see by itself, and where in the owner's source we are."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import fx
from torch.fx._symbolic_trace import _maybe_revert_all_patches

from . import allowed
from .graph import NotExpressible

# Functions that make a tensor from sizes: torch.fx does not see them, since no argument of theirs is a tensor.
_FACTORIES = ("arange", "zeros", "ones", "full", "eye", "linspace", "tensor", "as_tensor")
# Called without a tensor they would be frozen into one constant.
_RANDOM = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "empty")

_ACTIVE: list[dict[str, Any]] = []


@contextmanager
def watched() -> Iterator[None]:
    """While tracing: functions that make tensors from sizes are recorded; randomness and custom autograd, refused."""
    # Before anything is replaced: the tables hold the functions themselves.
    allowed.function_names()
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
def unwatched() -> Iterator[None]:
    """Inside `watched`: torch as it is, to run a part of the graph."""
    replaced = {name: getattr(torch, name) for name in _ACTIVE[-1]} if _ACTIVE else {}
    for name in replaced:
        setattr(torch, name, _ACTIVE[-1][name])
    try:
        # torch.fx itself turns every parameter that a layer looks up into a step of the graph.
        with _maybe_revert_all_patches():
            yield
    finally:
        for name, function in replaced.items():
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
        raise NotExpressible(f"{name} {why}", line=here(), hint="a network as data always gives the same answer")

    return call


def _is_owners(file: str) -> bool:
    ours = file.startswith((str(Path(__file__).parent), "<frozen", "<eval_with_key>", "<string>"))
    return not ours and "/torch/" not in file and not file.endswith("contextlib.py")


def here() -> str | None:
    """The innermost line of the owner's that is running now."""
    frame = inspect.currentframe()
    while frame is not None:
        if _is_owners(frame.f_code.co_filename):
            return _line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def owners_line(trace: TracebackType | None) -> str | None:
    found = None
    while trace is not None:
        if _is_owners(trace.tb_frame.f_code.co_filename):
            found = _line(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found


def _line(file: str, number: int) -> str:
    return f"{file}:{number}: {linecache.getline(file, number).strip()}".rstrip(": ")
