"""The whole road over real HTTP: push, train, prune, convert, deploy, predict; and again after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from enginesmith import ApiError, Client
from networks import SimpleCNN
from running import start_service

CHEAP = {"epochs": 6, "batch_size": 64, "lr": 0.05, "seed": 1}


@pytest.mark.timeout(1800)
def test_the_road_and_a_restart(tmp_path: Path, digits: dict[str, np.ndarray]) -> None:
    service = start_service(tmp_path / "data")
    try:
        with Client(service.url) as client:
            answers = travel(client, digits)
        assert service.stop() == 0
        service = start_service(tmp_path / "data", workers=0)
        with Client(service.url) as client:
            found_again(client, digits, answers)
    finally:
        service.stop()


def travel(client: Client, digits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    client.datasets.push("digits", digits)
    pushed = client.push(SimpleCNN(), "net", example=torch.zeros(1, 1, 28, 28), wait=True)
    first = client.models.version("net@1")
    assert first["trainable"]
    assert first["format"] == "torch"
    assert [t["name"] for t in first["signature"]["outputs"]] == ["logits"]
    assert first["parameters"] == sum(p.numel() for p in SimpleCNN().parameters())
    assert pushed is not None

    trained = client.jobs.submit("train", model="net", dataset="digits", wait=True, **CHEAP)
    assert [row["epoch"] for row in client.jobs.get(trained).history] == [1, 2, 3, 4, 5, 6]
    quality = client.models.version(trained.result.model)["metrics"]["quality"]
    assert quality["low"] <= quality["value"] <= quality["high"]
    assert quality["n"] == 359
    assert quality["split"] == "test"
    assert quality["value"] > 0.8

    sparse = client.jobs.submit(
        "prune", model=trained.result.model, dataset="digits", method="l1_unstructured", amount=0.6, wait=True
    )
    assert client.models.version(sparse.result.model)["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert "speed" in str(sparse.result.report)

    small = client.jobs.submit(
        "prune", model=trained.result.model, dataset="digits", method="channel", amount=0.5, finetune=CHEAP, wait=True
    )
    thin = client.models.version(small.result.model)
    assert thin["parameters"] < 0.5 * first["parameters"]
    assert thin["macs"] < 0.6 * first["macs"]
    assert thin["metrics"]["quality"]["value"] > 0.8

    answers = {}
    for target in ("openvino", "onnxruntime"):
        built = client.jobs.submit(
            "convert", model=small.result.model, dataset="digits", target=target, max_batch=16, wait=True
        )
        engine = client.models.version(built.result.model)
        assert engine["format"] == target
        assert engine["metrics"]["parity"]["max_abs_diff"] < 1e-3
        assert {row["batch"] for row in engine["metrics"]["latency"]} == {1, 16}
        deployed = client.deploy(f"{target}-net", built.result.model)
        assert deployed["status"] == "ready"
        answers[target] = client.predict(f"{target}-net", digits["x"][:5])["outputs"]["logits"]
        assert answers[target].shape == (5, 10)
    assert np.abs(answers["openvino"] - answers["onnxruntime"]).max() < 1e-3

    tree = client.models.lineage("net")
    assert "net@1" in str(tree)
    with pytest.raises(ApiError) as refused:
        client.deploy("wrong", trained.result.model)
    assert refused.value.status == 409
    assert refused.value.hint
    return answers


def found_again(client: Client, digits: dict[str, np.ndarray], answers: dict[str, np.ndarray]) -> None:
    for target, before in answers.items():
        client.deployments.settled(client.deployments.get(f"{target}-net"), 240)
        after = client.predict(f"{target}-net", digits["x"][:5])["outputs"]["logits"]
        assert np.array_equal(after, before)
    assert len(client.models.get("net")["versions"]) == 6
    assert {job.status for job in client.jobs.list()} == {"succeeded"}
    assert client.datasets.get("digits")["name"] == "digits"
