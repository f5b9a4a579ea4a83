"""train with a teacher of every format, and the teacher that a fine-tuning has by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import SimpleCNN
from torch import nn

from app.domain.specs import Training
from app.errors import BadDataset, Unprocessable
from workers.net import load
from workers.nn.data import Data
from workers.nn.finetune import finetune
from workers.nn.forecast import size, training


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


@pytest.fixture
def blobs(bench: Any) -> None:
    """A data set of three clouds, `blobs@1`, and a trained teacher of them, `big@1`."""
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 3, n)
        x = rng.standard_normal((n, 6)).astype(np.float32)
        x[np.arange(n), y] += 3
        return x, y.astype(np.int64)

    splits = {"train": some(192), "val": some(64), "test": some(64)}
    bench.dataset("blobs", **splits)
    torch.manual_seed(0)
    bench.model("raw", Tiny(), (6,))
    _, draft = bench.run(kind="train", model="raw@1", dataset="blobs@1", epochs=6)
    assert draft["teacher"] is None


def taught(bench: Any, teacher: str, **more: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The weights of a small student, and the report."""
    torch.manual_seed(1)
    student = bench.model("small", nn.Sequential(nn.Linear(6, 3)), (6,))
    spec = {"kind": "train", "model": student.ref, "dataset": "blobs@1", "epochs": 3, "lr": 0.05, "alpha": 0.9} | more
    outcome = bench.apply(**spec, teacher=teacher)
    weight = load(outcome.folder, student).module.state_dict()["0.weight"]
    return weight, outcome.report


@pytest.mark.parametrize("target", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_an_engine_teaches_what_the_network_in_it_teaches(bench: Any, blobs: Any, target: str) -> None:
    by_network, report = taught(bench, "raw@2")
    assert (report["teacher"], report["temperature"], report["alpha"]) == ("raw@2", 4.0, 0.9)
    assert report["quality"]["value"] > 0.7
    engine, _ = bench.run(kind="convert", model="raw@2", target=target)
    by_engine, report = taught(bench, engine.ref)
    assert report["teacher"] == engine.ref
    assert torch.allclose(by_network, by_engine, atol=1e-3)
    by_nobody, _ = taught(bench, engine.ref, alpha=0)
    assert not torch.allclose(by_network, by_nobody, atol=1e-2)


def test_an_onnx_file_teaches_too(bench: Any, blobs: Any, tmp_path: Any) -> None:
    version = bench.catalog.version("raw", 2)
    by_network, _ = taught(bench, "raw@2")
    from workers.nn.export import to_onnx

    ctx = bench.context({"kind": "train", "model": "raw@2", "dataset": "blobs@1"})
    net = load(ctx.source()[1], version)
    ctx.report.close()
    to_onnx(net.module, net.signature, net.example(), tmp_path / "model.onnx")
    bench.file("graph", "onnx", tmp_path / "model.onnx", version.signature)
    by_graph, _ = taught(bench, "graph@1")
    assert torch.allclose(by_network, by_graph, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_teaches_in_the_sandbox(bench: Any, blobs: Any, tmp_path: Any) -> None:
    version = bench.catalog.version("raw", 2)
    by_network, _ = taught(bench, "raw@2")
    ctx = bench.context({"kind": "train", "model": "raw@2", "dataset": "blobs@1"})
    net = load(ctx.source()[1], version)
    ctx.report.close()
    torch.jit.trace(net.module, net.example()).save(tmp_path / "model.pt")
    bench.file("program", "torchscript", tmp_path / "model.pt", version.signature)
    by_program, _ = taught(bench, "program@1")
    assert torch.allclose(by_network, by_program, atol=1e-3)


def test_regression_learns_the_teachers_values(bench: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    y = (x @ np.array([1, 2, 0, -1], np.float32)).astype(np.float32)
    noise = rng.standard_normal(300).astype(np.float32) * 3
    bench.dataset("line", train=(x[:200], (y + noise)[:200]), val=(x[200:250], y[200:250]), test=(x[250:], y[250:]))
    teacher = nn.Sequential(nn.Linear(4, 1))
    with torch.no_grad():
        teacher[0].weight.copy_(torch.tensor([[1.0, 2, 0, -1]]))
        teacher[0].bias.zero_()
    bench.model("teacher", teacher, (4,))
    bench.model("m", nn.Sequential(nn.Linear(4, 1)), (4,))
    spec = {"kind": "train", "model": "m@1", "dataset": "line@1", "epochs": 15, "lr": 0.05, "alpha": 0.9}
    alone, _ = bench.run(**spec)
    version, report = bench.run(**spec, teacher="teacher@1")
    assert version.metrics.quality.value > 0.98
    assert version.metrics.quality.value >= alone.metrics.quality.value
    assert report["final_distillation_loss"] < 0.2 < report["final_loss"]


def test_what_only_running_shows_fails_clearly(bench: Any, blobs: Any) -> None:
    bench.model("four", nn.Sequential(nn.Linear(6, 4)), (6,))
    with pytest.raises(Unprocessable, match=r"\[4\] per row, and the model \[3\]") as failed:
        taught(bench, "four@1")
    assert failed.value.code == "teacher_mismatch"
    bench.model("wide", nn.Sequential(nn.Linear(7, 3)), (7,))
    with pytest.raises(BadDataset, match=r"\[6\].*\[7\]"):
        taught(bench, "wide@1")
    silent = nn.Sequential(nn.Linear(6, 3))
    with torch.no_grad():
        silent[0].weight.fill_(float("nan"))
    bench.model("silent", silent, (6,))
    with pytest.raises(Unprocessable, match=r"silent@1 answers rows .* NaN"):
        taught(bench, "silent@1")


@pytest.mark.parametrize(
    ("plan", "teacher"),
    [({}, "raw@2"), ({"teacher": "raw@1"}, "raw@1"), ({"alpha": 0}, None), ({"alpha": 0, "teacher": "raw@1"}, None)],
)
def test_a_finetuning_learns_from_the_version_it_came_from(
    bench: Any, blobs: Any, plan: dict[str, Any], teacher: str | None
) -> None:
    spec = {"kind": "prune", "model": "raw@2", "dataset": "blobs@1", "method": "channel", "finetune": plan}
    ctx = bench.context(spec)
    source, folder = ctx.source()
    net, whole = load(folder, source), load(folder, source)
    before = {k: v.clone() for k, v in whole.module.state_dict().items()}
    data: Data = ctx.dataset().fit_to(net.signature)
    for given in (None, whole.module, net.module):  # the network of the source in hand, or the very one that learns
        done = finetune(net, source, given, data, Training(epochs=1, **plan), ctx)
        ctx.clear_checkpoints()
        assert done.summary()["teacher"] == teacher
        assert all(p.requires_grad for p in net.module.parameters())
    ctx.report.close()
    assert all(torch.equal(v, before[k]) for k, v in whole.module.state_dict().items())


def test_prune_says_who_taught(bench: Any, blobs: Any) -> None:
    spec = {"kind": "prune", "model": "raw@2", "dataset": "blobs@1", "method": "channel", "amount": 0.5}
    _, report = bench.run(**spec, finetune={"epochs": 1, "temperature": 2})
    told = report["finetune"]
    assert (told["teacher"], told["temperature"], told["alpha"]) == ("raw@2", 2.0, 0.5)


def test_a_teacher_in_another_dtype(bench: Any) -> None:
    """Tokens as int32 for the student, as int64 for the teacher."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (120, 5)).astype(np.int64), rng.integers(0, 2, 120)
    bench.dataset("tokens", train=(x[:80], y[:80]), val=(x[80:100], y[80:100]), test=(x[100:], y[100:]))
    for name, dtype in (("teacher", "int64"), ("m", "int32")):
        bench.model(name, nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)), (5,), dtype=dtype)
    _, report = bench.run(kind="train", model="m@1", dataset="tokens@1", epochs=2, teacher="teacher@1")
    assert report["final_distillation_loss"] is not None


def test_a_forecast_changes_nothing_and_grows_with_the_epochs(bench: Any, stripes: Any) -> None:
    bench.dataset("stripes", **stripes)
    bench.model("m", SimpleCNN(), (1, 28, 28))
    ctx = bench.context({"kind": "prune", "model": "m@1", "dataset": "stripes@1", "method": "channel"})
    source, folder = ctx.source()
    net = load(folder, source)
    data = ctx.dataset().fit_to(net.signature)
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    random = torch.get_rng_state()
    assert 0 < training(net, data, Training(epochs=1), ctx) < training(net, data, Training(epochs=1000), ctx)
    ctx.report.close()
    assert torch.equal(random, torch.get_rng_state())
    assert not net.module.training
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert size(net) == {"parameters": 21840, "macs": 24 * 24 * 10 * 25 + 8 * 8 * 20 * 250 + 320 * 50 + 500}
