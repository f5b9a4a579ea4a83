"""Networks as ONNX files, inputs and the answers to them, for eight_six.py on another machine:

    python -m benchmarks.gpu.eight_six_prepare FOLDER [--networks cnn,resnet18,resnet50,vit]

Beside those of networks.py always two small ones: an output whose shape only the values tell, and an input that the
host reads. Answers come from PyTorch in float64, those of the small ones from ONNX Runtime. The opset is 17, the last
that TensorRT 8.6 knows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import torch
from onnx import TensorProto, helper

from benchmarks.gpu.engines import BOUNDS, drawn
from benchmarks.gpu.networks import SUBJECTS, Subject
from workers.nn.export import silence

OPSET, IR = 17, 8
MOST = 64
SIZES = (1, 3, 9)  # rows of the inputs; eight_six.py repeats them to make more
Case = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def prepare(folder: Path, names: Sequence[str], sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Writes NAME.onnx and NAME.npz of each, and networks.json, which tells the rest; returns what that holds."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [_subject(SUBJECTS[name], folder, sizes) for name in names]
    found += [_nonzero(folder, (*sizes, MOST)), _expanded(folder, (*sizes, MOST))]
    (folder / "networks.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def _subject(subject: Subject, folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    module = subject.module()
    path = folder / f"{subject.name}.onnx"
    _export(module, subject, path)
    double = module.double()
    cases: list[Case] = []
    for rows in sizes:
        x = drawn(subject, rows, seed=rows)
        with torch.inference_mode():
            cases.append(({"input": x}, {"logits": double(torch.from_numpy(x).double()).numpy()}))
    _write(folder / f"{subject.name}.npz", cases)
    # Two profiles for the smallest: a session then changes from one to the other.
    edges = ((1, 8, 8), (9, MOST, MOST)) if subject.name == "cnn" else ((1, 8, MOST),)
    return {
        "name": subject.name, "on_host": [], "cases": len(cases), "batches": [1, 8, MOST],
        "profiles": [{"input": [[rows, *subject.shape] for rows in edge]} for edge in edges],
        "bounds": {precision: BOUNDS[precision] for precision in ("fp32", "fp16")},
    }  # fmt: skip


def _export(module: torch.nn.Module, subject: Subject, path: Path) -> None:
    """torch's exporter begins at opset 18: from there back to 17."""
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with silence(), torch.no_grad():
        torch.onnx.export(
            module, (torch.randn(2, *subject.shape),), str(path), dynamo=True, opset_version=OPSET + 1, verbose=False,
            input_names=["input"], output_names=["logits"], dynamic_shapes=({0: batch},), external_data=False,
        )  # fmt: skip
    model = onnx.version_converter.convert_version(onnx.load(str(path)), OPSET)
    model.ir_version = IR
    for node in model.graph.node:
        if node.op_type.startswith("Reduce"):  # what the converter forgets: opset 17 lacks this attribute
            kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
        del node.metadata_props[:]  # the exporter's notes about this machine
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _nonzero(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("NonZero", ["r"], ["y"])]
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["rows", 3])]
    outputs = [value("y", TensorProto.INT64, [2, "found"])]
    rng = np.random.default_rng(0)
    given = [{"x": rng.standard_normal((rows, 3)).astype(np.float32)} for rows in sizes]
    given.append({"x": -np.ones((2, 3), np.float32)})  # nothing is found
    return {
        **_small("nonzero", nodes, inputs, outputs, given, folder), "on_host": [],
        "profiles": [{"x": [[1, 3], [8, 3], [MOST, 3]]}],
    }  # fmt: skip


def _expanded(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    nodes = [helper.make_node("Expand", ["x", "to"], ["y"])]
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["rows", 1]), value("to", TensorProto.INT64, [2])]
    outputs = [value("y", TensorProto.FLOAT, ["rows", "columns"])]
    rng = np.random.default_rng(0)
    given = [
        {"x": rng.standard_normal((rows, 1)).astype(np.float32), "to": np.array([rows, 2 + rows % 3])} for rows in sizes
    ]
    # Values change, and no shape of an input does.
    given += [{"x": given[-1]["x"], "to": np.array([len(given[-1]["x"]), columns])} for columns in (7, 1)]
    return {
        **_small("expanded", nodes, inputs, outputs, given, folder), "on_host": ["to"],
        "profiles": [{"x": [[1, 1], [8, 1], [MOST, 1]], "to": [[1, 1], [8, 4], [MOST, 8]]}],
    }  # fmt: skip


def _small(
    name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], given: list[dict[str, np.ndarray]], folder: Path
) -> dict[str, Any]:
    graph = helper.make_graph(nodes, name, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(folder / f"{name}.onnx"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    run: Callable[..., list[np.ndarray]] = session.run
    answers = [{outputs[0].name: run(None, x)[0]} for x in given]
    _write(folder / f"{name}.npz", list(zip(given, answers, strict=True)))
    return {"name": name, "cases": len(given), "batches": [], "bounds": {"fp32": 0.0}}


def _write(path: Path, cases: Sequence[Case]) -> None:
    arrays = {
        f"{number}.{side}.{name}": array
        for number, case in enumerate(cases)
        for side, part in zip(("in", "out"), case, strict=True)
        for name, array in part.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", default=",".join(SUBJECTS))
    given = parser.parse_args(arguments)
    for facts in prepare(given.folder, [name for name in given.networks.split(",") if name]):
        size = (given.folder / f"{facts['name']}.onnx").stat().st_size
        print(f"{facts['name']}: {size / 2**20:.1f} MiB, {facts['cases']} inputs with answers")


if __name__ == "__main__":
    main()
