"""Rewrites an ONNX graph from fp32 to fp16 or bf16, but for what is to stay, with a Cast wherever the two meet.

What a node may take and give in half precision is asked of ONNX's own schemas. (onnxconverter-common's converter lets
values that fp16 cannot hold pass through it between two nodes that stay in fp32, makes an output fp16 whose node stays,
and gives types that contradict each other where nodes of both kinds share a weight, or the file has a Cast of its own.)
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from app.domain.bfloat16 import narrowed
from app.runtimes._graphs import graphs

# What draws numbers of its own, or makes positions: half precision gains nothing there, and positions need every digit.
_LEFT = frozenset(
    (
        *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"),
        *("EyeLike", "Range", "CumSum", "RoiAlign", "Upsample"),
    )
)
_ARITHMETIC = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Abs", "Mod", "Min", "Max", "Clip", "Floor", "Ceil"),
        *("Round", "Cast", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Where"),
    )
)


# How a Constant may say its value, beside a tensor.
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def lift_constants(model: Any) -> None:
    """Constant nodes become initializers, which is where weights are looked for. In place."""
    import onnx

    kept = []
    for node in model.graph.node:
        held = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
        tensor = onnx.TensorProto()
        if held is not None and held.name == "value":
            tensor.CopyFrom(held.t)
        elif held is not None and held.name in _NUMBERS:
            array = np.array(onnx.helper.get_attribute_value(held), _NUMBERS[held.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(array))
        else:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    given = {t.name for t in model.graph.initializer}
    for tensor in [t for t in model.graph.input if t.name in given]:  # as files before IR 4 have it
        model.graph.input.remove(tensor)


def left(model: Any) -> dict[str, str]:
    """Nodes with floats that stay in fp32 whatever their values are: name → why."""
    floats = _floats(model)
    found = {}
    for node in model.graph.node:
        if not floats.intersection((*node.input, *node.output)):
            continue
        if node.op_type in _LEFT:
            found[node.name] = f"{node.op_type} is left in fp32"
        elif len(graphs(_alone(node))) > 1:
            found[node.name] = f"{node.op_type} has graphs of its own, which are left in fp32"
        elif _schema(model, node) is None:
            found[node.name] = f"{node.op_type} is no operator of ONNX"
    return found | _sizes(model, floats)


def halve(model: Any, kind: int, kept: Collection[str]) -> Any:
    """A copy in which all floats are of the type `kind`, FLOAT16 or BFLOAT16, but inputs, outputs and what the nodes
    named in `kept` read and write. model: without Constant nodes, and with a name of its own for every node."""
    import onnx

    half = onnx.ModelProto()
    half.CopyFrom(model)
    _Rewriting(half, kind, kept, _floats(model)).run()
    return half


class _Rewriting:
    """names: (tensor, type) → what it is called in that type. home: the type in which a tensor is made."""

    def __init__(self, model: Any, kind: int, kept: Collection[str], floats: Collection[str]) -> None:
        import onnx

        self._onnx, self._float = onnx, int(onnx.TensorProto.FLOAT)
        self._model, self._graph, self._kind, self._kept, self._floats = model, model.graph, kind, kept, floats
        self._word = "fp16" if kind == onnx.TensorProto.FLOAT16 else "bf16"
        self._weights = {t.name: t for t in self._graph.initializer if t.data_type == self._float}
        self._home = dict.fromkeys(floats, self._float)
        self._names = {(name, self._float): name for name in floats}
        # Others see them by their names: who asks for the model's outputs, and graphs within nodes.
        self._seen = {o.name for o in self._graph.output}
        for inner in graphs(self._graph)[1:]:
            self._seen |= {t for n in inner.node for t in n.input} | {o.name for o in inner.output}
        self._nodes: list[Any] = []

    def run(self) -> None:
        wide = self._seen | {
            name
            for node in self._graph.node
            for place, name in enumerate(node.input)
            if name in self._weights and self._wanted(node, place, name) == self._float
        }
        read = {name for node in self._graph.node for name in node.input} | self._seen
        for name in self._weights:
            self._names[name, self._kind] = f"{name}/{self._word}" if name in wide else name
        narrow: set[str] = set()
        for node in list(self._graph.node):
            for place, name in enumerate(node.input):
                if name in self._floats:
                    wanted = self._wanted(node, place, name)
                    if name in self._weights and wanted == self._kind:
                        narrow.add(name)
                    node.input[place] = self._as(name, wanted)
            self._write(node)
        weights = []
        for tensor in self._graph.initializer:
            if tensor.name not in self._weights or tensor.name in wide or tensor.name not in read:
                weights.append(tensor)
            if tensor.name in narrow:
                weights.append(self._narrowed(tensor, self._names[tensor.name, self._kind]))
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(weights)

    def _wanted(self, node: Any, place: int, name: str) -> int:
        """The type in which a node is to read a float."""
        if node.op_type == "Cast" and node.name not in self._kept:
            return self._float if name in self._weights else self._home[name]
        return self._kind if self._may(node, place, "inputs") else self._float

    def _may(self, node: Any, place: int, side: str) -> bool:
        """Whether that input or output of a node may be in half precision, and is to be."""
        if node.name in self._kept or (schema := _schema(self._model, node)) is None:
            return False
        formal = getattr(schema, side)
        return bool(formal) and "tensor(float16)" in formal[min(place, len(formal) - 1)].types

    def _as(self, name: str, wanted: int) -> str:
        if (name, wanted) not in self._names:
            word = "fp32" if wanted == self._float else self._word
            self._names[name, wanted] = f"{name}/{word}"
            self._cast(self._names[name, self._home[name]], f"{name}/{word}", wanted)
        return self._names[name, wanted]

    def _cast(self, given: str, made: str, to: int) -> None:
        self._nodes.append(self._onnx.helper.make_node("Cast", [given], [made], f"{made}/cast", to=to))

    def _write(self, node: Any) -> None:
        self._nodes.append(node)
        turned = [
            (place, name)
            for place, name in enumerate(node.output)
            if name in self._floats and self._may(node, place, "outputs")
        ]
        if turned:
            self._say_type(node)
        for place, name in turned:
            self._home[name] = self._kind
            self._names[name, self._kind] = name
            if name in self._seen:
                self._names[name, self._kind] = node.output[place] = f"{name}/{self._word}"
                self._cast(f"{name}/{self._word}", name, self._float)
            else:
                del self._names[name, self._float]

    def _say_type(self, node: Any) -> None:
        """Where a node has an attribute for the type that it makes."""
        said = {a.name: a for a in node.attribute}
        if node.op_type == "Cast":
            said["to"].i = self._kind
        elif "output_dtype" in said:  # of DequantizeLinear since opset 23
            said["output_dtype"].i = self._kind
        elif node.op_type == "ConstantOfShape":
            value = said.get("value")
            array = np.zeros(1, np.float32) if value is None else self._onnx.numpy_helper.to_array(value.t)
            del node.attribute[:]
            tensor = self._narrowed(self._onnx.numpy_helper.from_array(array), "value")
            node.attribute.append(self._onnx.helper.make_attribute("value", tensor))

    def _narrowed(self, tensor: Any, name: str) -> Any:
        array = self._onnx.numpy_helper.to_array(tensor)
        if self._kind == self._onnx.TensorProto.FLOAT16:
            with np.errstate(over="ignore"):  # of an infinity, which stays one
                return self._onnx.numpy_helper.from_array(array.astype(np.float16), name)
        bits = narrowed(array).astype("<u2").tobytes()
        return self._onnx.TensorProto(name=name, data_type=self._kind, dims=tensor.dims, raw_data=bits)


def _floats(model: Any) -> set[str]:
    """Every tensor of type float32, as far as types can be told."""
    import onnx

    known = onnx.shape_inference.infer_shapes(model).graph
    values = (*known.value_info, *known.input, *known.output)
    found = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return found | {t.name for t in known.initializer if t.data_type == onnx.TensorProto.FLOAT}


def _sizes(model: Any, floats: Collection[str]) -> dict[str, str]:
    """Nodes whose floats become nothing but whole numbers: sizes and places, of which fp16 knows 2048."""
    whole: dict[str, str] = {}
    rounded: set[str] = set()  # floats that nobody reads but these nodes
    open_ = {o.name for o in model.graph.output}
    for inner in graphs(model.graph)[1:]:
        open_ |= {t for n in inner.node for t in n.input}
    types = {n.name: {a.name: a.i for a in n.attribute}.get("to") for n in model.graph.node if n.op_type == "Cast"}
    for node in reversed(model.graph.node):
        made = [out for out in node.output if out in floats]
        if (node.op_type == "Cast" and types[node.name] in (6, 7)) or (  # INT32, INT64
            made and node.op_type in _ARITHMETIC and all(out in rounded for out in made)
        ):
            if made:
                whole[node.name] = "its values become whole numbers"
            rounded |= {name for name in node.input if name not in open_}
        else:
            open_ |= set(node.input)
            rounded -= set(node.input)
    return whole


@functools.cache
def _formal(operator: str, domain: str, opset: int) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _schema(model: Any, node: Any) -> Any:
    domain = "" if node.domain == "ai.onnx" else node.domain
    opsets: Mapping[str, int] = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    return _formal(node.op_type, domain, opsets.get(domain, 1))


def _alone(node: Any) -> Any:
    import onnx

    return onnx.GraphProto(node=[node])
