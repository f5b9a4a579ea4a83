"""The two networks as ONNX files with random weights of a fixed seed, written without torch and without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Graph:
    """Nodes and weights as they are added; every method gives the name of its output."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _weight(self, array: npt.NDArray[np.float32]) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def _drawn(self, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> str:
        """He's initialization: activations keep their size through the layers."""
        return self._weight(self._random.standard_normal(shape, np.float32) * np.float32(scale * np.sqrt(2 / fan_in)))

    def conv(
        self, x: str, inside: int, outside: int, size: int, stride: int = 1, pad: int = 0, scale: float = 1.0
    ) -> str:
        weight = self._drawn((outside, inside, size, size), inside * size * size, scale)
        bias = self._weight(np.zeros(outside, np.float32))
        return self.add("Conv", x, weight, bias, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def linear(self, x: str, inside: int, outside: int, output: str | None = None) -> str:
        bias = self._weight(np.zeros(outside, np.float32))
        return self.add("Gemm", x, self._drawn((outside, inside), inside), bias, output=output, transB=1)

    def pool(self, x: str, size: int, stride: int, pad: int = 0) -> str:
        return self.add("MaxPool", x, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def write(self, path: Path, row: tuple[int, ...], classes: int) -> None:
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *row])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def write_tiny(path: Path) -> None:
    """The small CNN of PyTorch's MNIST article: x [batch, 1, 28, 28] → logits [batch, 10]."""
    g = _Graph(0)
    x = g.relu(g.pool(g.conv("x", 1, 10, 5), 2, 2))
    x = g.relu(g.pool(g.conv(x, 10, 20, 5), 2, 2))
    x = g.relu(g.linear(g.add("Flatten", x), 320, 50))
    g.linear(x, 50, 10, output="logits")
    g.write(path, (1, 28, 28), 10)


def write_resnet(path: Path) -> None:
    """ResNet-18 (arXiv:1512.03385) with its batch norms folded: x [batch, 3, 224, 224] → logits [batch, 1000]."""
    g = _Graph(1)
    x = g.pool(g.relu(g.conv("x", 3, 64, 7, 2, 3)), 3, 2, 1)
    inside = 64
    for outside, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        # Half as large as He's, so that what the blocks add up does not grow with depth.
        y = g.conv(g.relu(g.conv(x, inside, outside, 3, stride, 1)), outside, outside, 3, 1, 1, 0.5)
        same = x if (inside, stride) == (outside, 1) else g.conv(x, inside, outside, 1, stride)
        x, inside = g.relu(g.add("Add", y, same)), outside
    x = g.add("Flatten", g.add("GlobalAveragePool", x))
    g.linear(x, 512, 1000, output="logits")
    g.write(path, (3, 224, 224), 1000)


WRITERS = {"tiny": write_tiny, "resnet": write_resnet}


def network(model: str, folder: Path) -> Path:
    """The file, written unless it is there. model: `tiny` or `resnet`."""
    path = folder / f"{model}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".part")
        WRITERS[model](fresh)
        fresh.rename(path)
    return path
