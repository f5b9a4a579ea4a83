"""train: a version with everything measured, zeros that stay, data that must fit."""

import numpy as np
import pytest
import torch
from networks import SimpleCNN

from app.errors import BadDataset, Unprocessable
from workers.net import load


def test_a_trained_version_carries_its_figures(bench, stripes) -> None:
    torch.manual_seed(0)
    bench.dataset("stripes", **stripes)
    bench.model("m", SimpleCNN(), (1, 28, 28))
    version, report = bench.run(kind="train", model="m@1", dataset="stripes@1", epochs=4)
    quality = version.metrics.quality
    assert quality.value > 0.8
    assert quality.low < quality.value < quality.high
    assert (quality.split, quality.n, quality.dataset) == ("test", 200, "stripes@1")
    assert [t.batch for t in version.metrics.latency] == [1, 64]
    assert all(t.runtime == "torch" and t.p50_ms > 0 and t.threads == 1 for t in version.metrics.latency)
    assert version.parameters == 21840
    assert version.macs == 24 * 24 * 10 * 25 + 8 * 8 * 20 * 250 + 320 * 50 + 500
    assert version.sparsity == 0
    assert set(version.metrics.layer_sparsity) == {"conv1", "conv2", "fc1", "fc2"}
    assert version.trainable
    assert version.task == "classification"
    assert report["epochs"] == 4
    assert [row["epoch"] for row in _history(bench)] == [1, 2, 3, 4]


def _history(bench):
    jobs, _ = bench.catalog.jobs()
    return bench.catalog.job(jobs[0].id).history


def test_the_same_seed_gives_the_same_weights_and_scratch_forgets(bench, stripes) -> None:
    bench.dataset("stripes", **stripes)
    bench.model("m", SimpleCNN(), (1, 28, 28))
    spec = {"kind": "train", "model": "m@1", "dataset": "stripes@1", "epochs": 1, "from_scratch": True, "seed": 5}
    weights = []
    for more in ({}, {}, {"seed": 6}):
        outcome = bench.apply(**spec | more)
        version = bench.catalog.version("m", 1)
        weights.append(load(outcome.folder, version).module.state_dict()["conv1.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_data_of_another_shape_or_with_too_many_classes(bench, stripes) -> None:
    small = {k: (x[:, :, :14, :14].copy(), y) for k, (x, y) in stripes.items()}
    many = {k: (x, y + 3) for k, (x, y) in stripes.items()}
    bench.dataset("small", **small)
    bench.dataset("many", **many)
    bench.model("m", SimpleCNN(), (1, 28, 28))
    with pytest.raises(BadDataset, match=r"\[1, 14, 14\].*\[1, 28, 28\]"):
        bench.apply(kind="train", model="m@1", dataset="small@1")
    with pytest.raises(Unprocessable, match="13 classes; the model has 10 outputs"):
        bench.apply(kind="train", model="m@1", dataset="many@1")


def test_regression_is_measured_by_r2(bench) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    y = (x @ np.array([1, 2, 0, -1], np.float32)).astype(np.float32)
    bench.dataset("line", train=(x[:200], y[:200]), val=(x[200:250], y[200:250]), test=(x[250:], y[250:]))
    bench.model("m", torch.nn.Sequential(torch.nn.Linear(4, 1)), (4,))
    version, _ = bench.run(kind="train", model="m@1", dataset="line@1", epochs=20, lr=0.1)
    assert version.metrics.quality.name == "r2"
    assert version.metrics.quality.low > 0.9
