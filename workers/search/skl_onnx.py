"""A fitted estimator of scikit-learn as an ONNX model that takes rows in the data set's own layout."""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import numpy as np

from app.domain.records import Signature, Tensor

INPUT = "x"
_ROWS = "batch"
# Scores that no row's own ones come near, for classes that the training rows do not have.
_NEVER = -1e4


class NotWritten(ValueError):
    """The converter knows no way to write this estimator."""


def write(
    estimator: Any, row: tuple[int, ...], dtype: str, classes: int | None, values: int = 1
) -> tuple[Any, Signature]:
    """(onnx.ModelProto, signature). Input `x`: [batch, *row] in `dtype`; the graph flattens it and casts it to float32.

    classes: a classifier's outputs are `probabilities` [batch, classes] float32 (`scores`, of the decision function,
    where it knows no probabilities) and `label` [batch] int64, a number below `classes`; a class that it was never
    shown has the probability 0. None: a regressor's `prediction` [batch, values] float32. Raises NotWritten.
    """
    model = _converted(estimator, max(1, prod(row)), classes is not None)
    graph = model.graph
    _mend_weights(graph)
    _mend_width(graph, values)
    _take_rows(graph, row, dtype)
    if classes is None:
        _name_output(graph, 0, "prediction")
        outputs: list[tuple[str, str, tuple[int, ...]]] = [("prediction", "float32", (-1, values))]
    else:
        scores = "probabilities" if hasattr(estimator, "predict_proba") else "scores"
        _name_output(graph, 0, "label")
        _name_output(graph, 1, scores)
        if list(estimator.classes_) != list(range(classes)):
            _spread(graph, scores, estimator.classes_, classes)
        outputs = [(scores, "float32", (-1, classes)), ("label", "int64", (-1,))]
    _tell_outputs(graph, outputs)
    _tidy_opsets(model)
    _check(model)
    return model, Signature(
        inputs=(Tensor(name=INPUT, dtype=dtype, shape=(-1, *row)),),
        outputs=tuple(Tensor(name=n, dtype=d, shape=s) for n, d, s in outputs),
    )


def numbers(model: Any) -> int:
    """How many numbers were learnt: those of the graph's initializers, and of the nodes that hold a model of their own
    (trees, supports)."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.DOUBLE)
    held = sum(prod(t.dims) for t in model.graph.initializer if t.data_type in floats)
    nodes = (n for n in model.graph.node if n.domain == "ai.onnx.ml")
    return int(held + sum(len(a.floats) for n in nodes for a in n.attribute))


def _converted(estimator: Any, columns: int, classifies: bool) -> Any:
    with warnings.catch_warnings():
        # The converter's own business: fields that scikit-learn and protobuf mean to rename.
        warnings.simplefilter("ignore")
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType

        options: dict[str, Any] = {"zipmap": False} if classifies else {}
        if classifies and not hasattr(estimator, "predict_proba"):
            options["raw_scores"] = True
        try:
            return skl2onnx.to_onnx(
                estimator, initial_types=[("rows", FloatTensorType([None, columns]))], options={id(estimator): options}
            )
        except Exception as error:  # its errors have no common class
            raise NotWritten(" ".join(str(error).split())[:300]) from error


def _mend_weights(graph: Any) -> None:
    """skl2onnx 1.20 weighs nearest neighbours by the reciprocal of their distance times -1, bounded below by a number
    above 0: by nothing, that is."""
    from onnx import numpy_helper

    made = {name: node for node in graph.node for name in node.output}
    minus = {t.name for t in graph.initializer if t.dims == [1] and numpy_helper.to_array(t)[0] == -1}
    for node in graph.node:
        if node.op_type == "Max":
            for place, name in enumerate(node.input):
                times = made.get(name)
                if times is not None and times.op_type == "Mul" and times.input[1] in minus:
                    distance = made.get(times.input[0])
                    if distance is not None and distance.op_type == "TopK":
                        node.input[place] = times.input[0]


def _mend_width(graph: Any, values: int) -> None:
    """skl2onnx 1.20 writes what a network predicts as one number a row, however many it is."""
    from onnx import numpy_helper

    last = next((node for node in graph.node if graph.output[0].name in node.output), None)
    if values == 1 or last is None or last.op_type != "Reshape":
        return
    for tensor in graph.initializer:
        if tensor.name == last.input[1] and list(numpy_helper.to_array(tensor)) == [-1, 1]:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray([-1, values], np.int64), tensor.name))


def _take_rows(graph: Any, row: tuple[int, ...], dtype: str) -> None:
    """Puts the flattening, and the cast, in front."""
    from onnx import TensorProto, helper, numpy_helper

    inner = graph.input[0].name
    kind = getattr(TensorProto, {"float32": "FLOAT"}.get(dtype, dtype.upper()))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, kind, [_ROWS, *row]))
    steps, last = [], INPUT
    if len(row) != 1:
        shape = np.asarray([-1, max(1, prod(row))], np.int64)
        graph.initializer.append(numpy_helper.from_array(shape, "x_flat_shape"))
        steps.append(helper.make_node("Reshape", [last, "x_flat_shape"], ["x_flat"], "flatten_rows"))
        last = "x_flat"
    if dtype != "float32":
        steps.append(helper.make_node("Cast", [last], ["x_float"], "cast_rows", to=TensorProto.FLOAT))
        last = "x_float"
    _rename(graph, inner, last)
    nodes = [*steps, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(graph: Any, old: str, new: str) -> None:
    """Everywhere in the graph, in its subgraphs too."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for place, name in enumerate(node.output):
            if name == old:
                node.output[place] = new
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _rename(inner, old, new)


def _name_output(graph: Any, place: int, name: str) -> None:
    old = graph.output[place].name
    if old != name:
        _rename(graph, name, f"inner_{name}")
        _rename(graph, old, name)
        graph.output[place].name = name


def _spread(graph: Any, scores: str, seen: Any, classes: int) -> None:
    """Columns for every class of the data set, where the training rows show some of them only."""
    from onnx import helper, numpy_helper

    chosen = np.zeros((len(seen), classes), np.float32)
    chosen[np.arange(len(seen)), seen] = 1
    never = np.full(classes, 0 if scores == "probabilities" else _NEVER, np.float32)
    never[seen] = 0
    _rename(graph, scores, "seen_scores")
    graph.initializer.extend([numpy_helper.from_array(chosen, "seen_classes"), numpy_helper.from_array(never, "never")])
    graph.node.append(helper.make_node("MatMul", ["seen_scores", "seen_classes"], ["all_scores"]))
    graph.node.append(helper.make_node("Add", ["all_scores", "never"], [scores]))


def _tell_outputs(graph: Any, outputs: list[tuple[str, str, tuple[int, ...]]]) -> None:
    """The scores first: they are what a version is judged and taught by."""
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    del graph.output[:]
    for name, dtype, shape in outputs:
        graph.output.append(helper.make_tensor_value_info(name, kinds[dtype], [_ROWS, *shape[1:]]))


def _tidy_opsets(model: Any) -> None:
    """The converter names a domain twice."""
    from onnx import helper

    newest = {"": 13} if all(o.domain for o in model.opset_import) else {}
    for opset in model.opset_import:
        newest[opset.domain] = max(newest.get(opset.domain, 0), opset.version)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in newest.items())


def _check(model: Any) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise NotWritten(f"the graph is not valid: {' '.join(str(error).split())[:300]}") from error
