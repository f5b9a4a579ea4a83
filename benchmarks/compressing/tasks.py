"""What is made faster: a network with its weights, its data, and what is asked of the closed loop."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.compressing.networks import MnistExample, ResNet18, ResNet20

Arrays = dict[str, npt.NDArray[Any]]
IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)


@dataclass(frozen=True)
class Task:
    """network: with its weights, or without where `train` says how it gets them. asked: fields of the optimize job.
    aims: the speed-ups over the original's fp32 engine that the project set itself, by batch."""

    name: str
    network: Callable[[], nn.Module]
    arrays: Callable[[], Arrays]
    asked: dict[str, Any]
    aims: dict[int, float]
    train: dict[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())


def tasks(shared: Path | None) -> dict[str, Task]:
    """All that can be run here. shared: a folder of other people's checkpoints and data; None: only what ships."""
    found = {"digits": _digits()}
    if shared is not None and (shared / "models").is_dir():
        found |= {t.name: t for t in (_mnist(shared), _cifar(shared), _fashion(shared), _resnet18(shared))}
    return found


def _digits() -> Task:
    from demo.data import digits
    from demo.net import SimpleCNN

    return Task(
        "digits",
        SimpleCNN,
        digits,
        {"max_accuracy_drop": 0.03, "objective": "throughput", "batch": 64, "trials": 10,
         "finetune": {"epochs": 10, "batch_size": 32, "lr": 0.02}},
        {64: 1.4},
        train={"epochs": 30, "batch_size": 32, "lr": 0.05},
    )  # fmt: skip


def _mnist(shared: Path) -> Task:
    def network() -> nn.Module:
        made = MnistExample()
        made.load_state_dict(_checkpoint(shared, "mnist_cnn_official_example.pt"))
        return made

    def arrays() -> Arrays:
        folder = shared / "datasets" / "mnist"
        x, y = _idx(folder, "train")
        x_test, y_test = _idx(folder, "test3000")
        normal = [(a[:, None].astype(np.float32) / 255 - 0.1307) / 0.3081 for a in (x, x_test)]
        return _cut(normal[0], y, normal[1], y_test, val=4000, train=20_000)

    return Task(
        "mnist", network, arrays,
        {"objective": "throughput", "batch": 64, "trials": 8, "finetune": {"epochs": 3, "batch_size": 128, "lr": 0.02}},
        {64: 1.4},
    )  # fmt: skip


def _cifar(shared: Path) -> Task:
    def network() -> nn.Module:
        made = ResNet20(3)
        state = _checkpoint(shared, "cifar10_resnet20.th")["state_dict"]
        made.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        return made

    def arrays() -> Arrays:
        folder = shared / "datasets" / "cifar10-jpeg"
        x, labels = _pictures(folder / "train10000.zip")
        x_test, test_labels = _pictures(folder / "test2000.zip")
        order = sorted(set(labels))
        y, y_test = (np.array([order.index(name) for name in names]) for names in (labels, test_labels))
        return _cut(x, y, x_test, y_test, val=1500)

    return Task(
        "cifar_resnet20", network, arrays,
        {"objective": "throughput", "trials": 8, "parallel": 2, "time_limit_s": 1200,
         "finetune": {"epochs": 20, "batch_size": 128, "lr": 0.05, "weight_decay": 5e-4, "augment": "flip_crop"}},
        {1: 2.5, 32: 5.0},
        notes=("The test images are JPEG copies; the checkpoint loses ten points on them before anything is done.",),
    )  # fmt: skip


def _fashion(shared: Path) -> Task:
    def arrays() -> Arrays:
        folder = shared / "datasets" / "fashion-mnist"
        x, y = _idx(folder, "train")
        x_test, y_test = _idx(folder, "t10k")
        normal = [(a[:, None].astype(np.float32) / 255 - 0.286) / 0.353 for a in (x, x_test)]
        return _cut(normal[0], y, normal[1], y_test, val=4000, train=12_000)

    training = {"epochs": 8, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4}
    return Task(
        "fashion_resnet20", lambda: ResNet20(1), arrays,
        {"objective": "throughput", "trials": 10, "parallel": 2, "time_limit_s": 1200,
         "finetune": {"epochs": 8, "batch_size": 128, "lr": 0.05, "weight_decay": 5e-4}},
        {1: 2.5, 32: 5.0}, train=training,
    )  # fmt: skip


def _resnet18(shared: Path) -> Task:
    """Pictures of an easy task made large: what is measured is what the network costs, and what it keeps of it."""

    def arrays() -> Arrays:
        folder = shared / "datasets" / "mnist"
        x, y = _idx(folder, "train")
        x_test, y_test = _idx(folder, "test3000")
        train, test = (_enlarged(a) for a in (x[:1400], x_test[:2000]))
        return _cut(train, y[:1400], test, y_test[:2000], val=400)

    return Task(
        "resnet18", ResNet18, arrays,
        {"objective": "latency", "trials": 6, "parallel": 2, "time_limit_s": 1200,
         "finetune": {"epochs": 2, "batch_size": 32, "lr": 0.02, "weight_decay": 5e-4}},
        {1: 8.0}, train={"epochs": 4, "batch_size": 32, "lr": 0.05, "weight_decay": 5e-4, "amp": "bf16"},
    )  # fmt: skip


def _enlarged(x: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """N×28×28 of MNIST → N×3×224×224, normalised."""
    small = (torch.from_numpy(x)[:, None].float() / 255 - 0.1307) / 0.3081
    large = torch.nn.functional.interpolate(small, size=(224, 224), mode="bilinear", align_corners=False)
    return np.asarray(large.expand(-1, 3, -1, -1).contiguous())


def _checkpoint(shared: Path, name: str) -> Any:
    return torch.load(shared / "models" / name, weights_only=True, map_location="cpu")


def _cut(
    x: npt.NDArray[Any], y: npt.NDArray[Any], x_test: npt.NDArray[Any], y_test: npt.NDArray[Any], *, val: int,
    train: int | None = None,
) -> Arrays:  # fmt: skip
    order = np.random.default_rng(0).permutation(len(x))
    rest = order[val:][:train]
    return {
        "x": x[rest], "y": y[rest].astype(np.int64), "x_val": x[order[:val]], "y_val": y[order[:val]].astype(np.int64),
        "x_test": x_test, "y_test": y_test.astype(np.int64),
    }  # fmt: skip


def _idx(folder: Path, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    images = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    y = np.frombuffer(labels, np.uint8, offset=8)
    return np.frombuffer(images, np.uint8, offset=16).reshape(len(y), 28, 28), y


def _pictures(path: Path) -> tuple[npt.NDArray[Any], list[str]]:
    """Normalised N×3×32×32, and the name of each one's folder."""
    from PIL import Image

    pictures, labels = [], []
    with zipfile.ZipFile(path) as held:
        for name in sorted(n for n in held.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png"))):
            with Image.open(io.BytesIO(held.read(name))) as picture:
                pictures.append(np.asarray(picture.convert("RGB"), np.float32))
            labels.append(name.split("/")[-2])
    mean, std = IMAGENET
    return np.ascontiguousarray(((np.stack(pictures) / 255 - mean) / std).transpose(0, 3, 1, 2)), labels
