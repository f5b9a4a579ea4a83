"""Other people's checkpoints, the whole way over HTTP: their reference answers come back from the engines served."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from enginesmith import ApiError, Client, JobFailed, export
from networks import CifarResNet, OfficialMnist

pytestmark = [pytest.mark.shared, pytest.mark.timeout(1800)]
TARGETS = ["openvino", "onnxruntime"]
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="session")
def cifar2000(shared: Path) -> dict[str, np.ndarray]:
    """2,000 CIFAR-10 test images (JPEG copies) as [N, 3, 32, 32] in 0…1."""
    from PIL import Image

    x, y = [], []
    with zipfile.ZipFile(shared / "datasets" / "cifar10-jpeg" / "test2000.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"), np.float32)
                x.append(pixels.transpose(2, 0, 1) / 255)
                y.append(CIFAR.index(Path(name).parent.name))
    return {"x": np.stack(x), "y": np.array(y)}


def normalized(x: np.ndarray, std: list[float]) -> np.ndarray:
    mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
    return ((x - mean) / np.array(std, np.float32)[:, None, None]).astype(np.float32)


def engines(client: Client, name: str, **fields: object) -> Iterator[str]:
    """Converts the first version to every target and deploys each."""
    for target in TARGETS:
        built = client.jobs.submit("convert", model=f"{name}@1", target=target, wait=True, **fields)
        deployment = f"{name}-{target}"
        client.deploy(deployment, built.result.model)
        yield deployment


def accuracy(client: Client, deployment: str, x: np.ndarray, y: np.ndarray) -> float:
    answers = [client.predict(deployment, x[at : at + 50])["outputs"] for at in range(0, len(x), 50)]
    return float((np.concatenate([next(iter(a.values())) for a in answers]).argmax(1) == y).mean())


@pytest.mark.slow  # as the one of ResNet-20, which is not
def test_mnist_keeps_its_accuracy(client: Client, shared: Path, mnist3000: dict[str, np.ndarray]) -> None:
    described = export(OfficialMnist(), torch.zeros(1, 1, 28, 28))
    client.push(
        shared / "models" / "mnist_cnn_official_example.pt",
        "mnist",
        architecture=described.architecture,
        signature=described.signature,
        wait=True,
    )
    for deployment in engines(client, "mnist"):
        assert accuracy(client, deployment, **mnist3000) == pytest.approx(0.98467, abs=7e-4)  # 2 of 3,000


def test_resnet20_keeps_its_accuracy(client: Client, shared: Path, cifar2000: dict[str, np.ndarray]) -> None:
    described = export(CifarResNet(), torch.zeros(1, 3, 32, 32))
    client.push(
        shared / "models" / "cifar10_resnet20.th",
        "resnet20",
        architecture=described.architecture,
        signature=described.signature,
        wait=True,
    )
    x = normalized(cifar2000["x"], [0.229, 0.224, 0.225])
    for deployment in engines(client, "resnet20"):
        assert accuracy(client, deployment, x, cifar2000["y"]) == pytest.approx(0.8045, abs=1.1e-3)


@pytest.mark.slow
def test_a_state_dict_inside_a_list(client: Client, shared: Path, cifar2000: dict[str, np.ndarray]) -> None:
    layers = [
        {"type": "Conv2d", "in_channels": 3, "out_channels": 8, "kernel_size": 4, "stride": 2, "padding": 1},
        {"type": "ReLU"},
        {"type": "Conv2d", "in_channels": 8, "out_channels": 16, "kernel_size": 4, "stride": 2, "padding": 1},
        {"type": "ReLU"},
        {"type": "Flatten"},
        {"type": "Linear", "in_features": 1024, "out_features": 100},
        {"type": "ReLU"},
        {"type": "Linear", "in_features": 100, "out_features": 10},
    ]
    client.push(
        shared / "models" / "cifar_base_kw.pth",
        "kw",
        architecture={"sequential": layers},
        signature={"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 3, 32, 32]}]},
        wait=True,
    )
    x = normalized(cifar2000["x"], [0.225, 0.225, 0.225])
    for deployment in engines(client, "kw"):
        assert accuracy(client, deployment, x, cifar2000["y"]) == pytest.approx(0.6055, abs=1.1e-3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("silero_vad", marks=pytest.mark.slow),  # ten seconds
        pytest.param("marabou_cifar10_small", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("ppocr_cls_v2", "cifar_base_kw", "mnist-net_256x2")),
    ],
)
def test_onnx_files_give_their_reference_answers(client: Client, shared: Path, name: str) -> None:
    client.push(shared / "models" / f"{name}.onnx", name, wait=True)
    with np.load(shared / "ref" / f"{name}.onnx.npz") as reference:
        inputs = {k.removeprefix("in__"): reference[k] for k in reference.files if k.startswith("in__")}
        outputs = {k.removeprefix("out__"): reference[k] for k in reference.files if k.startswith("out__")}
    for deployment in engines(client, name):
        answer = client.predict(deployment, inputs)["outputs"]
        assert set(answer) == set(outputs)
        for key, expected in outputs.items():
            assert answer[key].shape == expected.shape
            assert np.abs(answer[key] - expected).max() < 1e-4


@pytest.mark.slow  # tests/load and tests/passes have it, without the HTTP
def test_torchscript_imports_and_says_why_it_cannot_be_converted(client: Client, shared: Path) -> None:
    signature = {
        "inputs": [
            {"name": "x", "dtype": "float32", "shape": [-1, 512]},
            {"name": "sr", "dtype": "int64", "shape": [], "batch_axis": None},
        ]
    }
    client.push(shared / "models" / "silero_vad.jit", "silero-jit", signature=signature, wait=True)
    version = client.models.version("silero-jit@1")
    assert version["format"] == "torchscript"
    assert not version["trainable"]
    for target in TARGETS:
        with pytest.raises(JobFailed) as failed:
            client.jobs.submit("convert", model="silero-jit@1", target=target, wait=True)
        assert failed.value.job.error["detail"]
        assert failed.value.job.error["status"] == 422


def conformance(shared: Path) -> list[Path]:
    return sorted((shared / "onnx_conformance").iterdir())


def tensor(path: Path) -> np.ndarray:
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


@pytest.mark.slow  # tests/passes has the same, without the HTTP
@pytest.mark.parametrize("target", TARGETS)
def test_conformance_models_pass_or_are_refused_by_operator(client: Client, shared: Path, target: str) -> None:
    passed = []
    for folder in conformance(shared):
        model = onnx.load(folder / "model.onnx")
        held = {i.name for i in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in held]
        data = folder / "test_data_set_0"
        inputs = {name: tensor(data / f"input_{n}.pb") for n, name in enumerate(names)}
        name = f"{folder.name}-{target}"
        try:
            client.push(folder / "model.onnx", name, wait=True)
            built = client.jobs.submit("convert", model=f"{name}@1", target=target, wait=True)
        except JobFailed as refused:
            reason = refused.job.error["detail"]
            if not any(node.op_type in reason for node in model.graph.node):
                raise
            continue
        client.deploy(name, built.result.model)
        answer = client.predict(name, inputs)["outputs"]
        for n, output in enumerate(model.graph.output):
            expected = tensor(data / f"output_{n}.pb")
            assert answer[output.name].dtype == expected.dtype
            assert answer[output.name].shape == expected.shape
            np.testing.assert_allclose(answer[output.name], expected, rtol=1e-3, atol=1e-5)
        client.deployments.delete(name)
        passed.append(folder.name)
    assert len(passed) >= 8


def test_a_pt2_is_refused_at_the_door(client: Client, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "net.pt2")
    with pytest.raises(ApiError) as refused:
        client.push(tmp_path / "net.pt2", "pt2", wait=True)
    assert refused.value.status == 422
    assert "export" in refused.value.hint
