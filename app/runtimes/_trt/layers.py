"""What TensorRT made of a graph, as its engine inspector tells: every layer of the plan, and what it computes in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

_NAMES = {
    "float": "fp32", "float32": "fp32", "fp32": "fp32", "half": "fp16", "float16": "fp16", "fp16": "fp16",
    "bfloat16": "bf16", "bf16": "bf16", "int8": "int8", "int32": "int32", "int64": "int64", "bool": "bool",
    "fp8": "fp8", "float8": "fp8", "int4": "int4", "uint8": "uint8",
}  # fmt: skip
# Operators whose time is multiplications of weights, or of one another: what a precision is chosen for.
PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
# What a layer is called that computes a product itself, and not just what comes after one.
_PRODUCT = re.compile(r"conv|correlation|gemm|matmul|matrix|fully|attention|mha|cask", re.IGNORECASE)
_ONNX = re.compile(r"\[ONNX Layer: (.*?)\](?=$|\s*[\[\x1e])")


@dataclass(frozen=True)
class Layer:
    """One layer of a plan. precision: of its inputs, as fp32, fp16, bf16, int8 …; `?` where the inspector is silent.
    products: the convolutions and matrix products of the graph that it computes. ms: of a run, where it was timed."""

    name: str
    type: str
    precision: str
    tactic: str | None = None
    products: tuple[str, ...] = ()
    ms: float | None = None

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"products": list(self.products)}


def layers(text: str, operators: Mapping[str, str] | None = None) -> list[Layer]:
    """text: the inspector's JSON with detailed verbosity; of a plan that was built with less it is names alone.
    operators: name of every node of the graph → its operator."""
    try:
        given = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    found = [_layer(entry) for entry in given]
    nodes = [_nodes(entry, layer) for entry, layer in zip(given, found, strict=True)]
    return _with_products(found, nodes, operators or {})


def timed(found: Iterable[Layer], ms: Mapping[str, float]) -> list[Layer]:
    """ms: name of a layer → milliseconds of a run."""
    return [replace(layer, ms=ms.get(layer.name)) for layer in found]


def executed(told: Iterable[Mapping[str, Any]]) -> dict[str, str] | None:
    """Name of every convolution and matrix product of the graph → the precision it is computed in. None where that is
    not told. told: layers, as JSON has them."""
    known = [layer for layer in told if layer["precision"] != "?"]
    return {name: layer["precision"] for layer in known for name in layer.get("products", ())} or None


def _with_products(found: list[Layer], nodes: list[list[str]], operators: Mapping[str, str]) -> list[Layer]:
    """Each product of the graph belongs to one layer: that which is called one, of several that work on it."""
    owner: dict[str, int] = {}
    for number, names in enumerate(nodes):
        for name in names:
            if operators.get(name) not in PRODUCTS:
                continue
            held = owner.get(name)
            if held is None or (_is_product(found[number]) and not _is_product(found[held])):
                owner[name] = number
    return [
        replace(layer, products=tuple(dict.fromkeys(name for name in nodes[number] if owner.get(name) == number)))
        for number, layer in enumerate(found)
    ]


def _is_product(layer: Layer) -> bool:
    return bool(_PRODUCT.search(layer.type))


def _nodes(entry: Any, layer: Layer) -> list[str]:
    """The nodes of the graph that are in a layer: of its metadata, or else of its name, as in `conv1 + relu1`."""
    told = str(entry.get("Metadata") or "") if isinstance(entry, dict) else ""
    return _ONNX.findall(told) or layer.name.split(" + ")


def _layer(entry: Any) -> Layer:
    if not isinstance(entry, dict):
        return Layer(str(entry), "?", "?")
    types = [_type(tensor) for tensor in entry.get("Inputs", ()) or entry.get("Outputs", ())]
    if isinstance(weights := entry.get("Weights"), dict):
        types.append(_type({"Datatype": weights.get("Type")}))
    kinds = [kind for kind in types if kind not in ("?", "bool", "int32", "int64")] or types or ["?"]
    tactic = entry.get("TacticName") or entry.get("TacticValue")
    return Layer(
        str(entry.get("Name", "?")),
        str(entry.get("ParameterType") or entry.get("LayerType") or "?"),
        kinds[0],
        str(tactic) if tactic else None,
    )


def _type(tensor: Any) -> str:
    """A tensor's `Format/Datatype` is as in `Row major linear FP16 format`; newer versions have a `Datatype` too."""
    if not isinstance(tensor, dict):
        return "?"
    said = str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
    for word in said.replace(":", " ").lower().split():
        if word in _NAMES:
            return _NAMES[word]
    return "?"
