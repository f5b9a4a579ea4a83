"""What the libraries' errors mean, in words for the person who sent the model or the tensor."""

from __future__ import annotations

import re

from app.domain.records import Signature
from app.errors import BadTensor, Internal, Problem, Unprocessable
from app.runtimes import Arrays

_OPERATORS = (
    re.compile(r"No conversion rule found for operations?: ([^\n]+)"),
    re.compile(r"(?:Fatal error: )(\S+?)\(-?\d+\) is not a registered function/op"),
    re.compile(r"No Op registered for (\S+)"),
    re.compile(r"Could not find an implementation for (\S+?)\("),
)
_UNCONVERTED = re.compile(r"Conversion is failed for: ([^\n]+)")
_OPSET = re.compile(
    r"Opset (\d+) is under development.*?Current official support for domain (\S+) is till opset (\d+)", re.S
)


def refused_graph(library: str, error: Exception) -> Unprocessable:
    """The library does not take this graph: names the operators, or the opset."""
    text = str(error)
    if found := _OPSET.search(text):
        opset, domain, newest = found.groups()
        return Unprocessable(
            f"{library} does not know opset {opset} of {domain}: the newest it runs is {newest}",
            code="unsupported_opset",
            hint=f"export the model with opset {newest} or older",
        )
    named: dict[str, None] = {}
    for pattern in _OPERATORS:
        for match in pattern.findall(text):
            named.update(dict.fromkeys(part.strip() for part in match.split(",") if part.strip()))
    if named:
        return Unprocessable(
            f"{library} has no implementation of: {', '.join(list(named)[:20])}",
            code="unsupported_operator",
            hint="choose another target, or export the model without these operators",
        )
    if failed := _UNCONVERTED.search(text):
        why = re.search(r"-- .* with a message:\n(?:.*\n)*?((?!.*(?:Check|While validating|FrontEnd API)).+)", text)
        return Unprocessable(
            f"{library} cannot convert {failed[1].strip()}" + (f": {first_words(why[1])}" if why else ""),
            code="unsupported_operator",
            hint="choose another target, or export the model without these operators",
        )
    return Unprocessable(
        f"{library} refuses this graph: {first_words(text)}",
        code="unsupported_graph",
        hint="choose another target, or check the file with onnx.checker",
    )


def refused_run(library: str, error: Exception, signature: Signature, inputs: Arrays) -> Problem:
    """A run failed: the caller's shapes where the signature leaves them open, else our fault."""
    text = first_words(str(error))
    dynamic = any(-1 in t.shape[1:] or (t.shape[:1] == (-1,) and t.batch_axis != 0) for t in signature.inputs)
    if dynamic or "InvalidArgument" in type(error).__name__:
        shapes = ", ".join(f"{name}: {list(array.shape)}" for name, array in inputs.items())
        return BadTensor(
            f"the network cannot run on these inputs ({shapes}): {text}",
            hint="the signature leaves some dimensions open; not every size, or every value, fits the network",
        )
    return Internal(f"{library} failed while running: {text}", code="engine_failed")


def first_words(text: str, limit: int = 400) -> str:
    """The library's message without its source positions, on one line, shortened."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not re.match(r"(Exception from|Check '.*' failed at) \S+:\d+:?$", line)]
    kept = [re.sub(r"(?:Exception from |failed at |/?\S*onnxruntime_src)\S+:\d+:?", "", line).strip() for line in kept]
    return " ".join(kept)[:limit] or "no message"
