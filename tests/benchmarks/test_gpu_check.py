"""`make gpu-check` goes the same way on a processor; and says so where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nvidia import without_driver

from benchmarks.gpu import check, engines, served, telling
from benchmarks.gpu.networks import SUBJECTS, ResNet50, Subject, ViT


def test_engines_of_a_processor_are_built_and_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert check.main(["--runtime", "openvino", "--short", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "ok: cnn fp32: relative error" in told
    assert "tensorrt" in told


def test_an_engine_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(check.engines.BOUNDS, "fp32", 1e-12)
    assert check.main(["--runtime", "openvino", "--short"]) == 1
    assert "FAILED: cnn fp32: relative error" in capsys.readouterr().out


@without_driver
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    assert "nothing was run on a GPU" in capsys.readouterr().out
    assert check.main(["--runtime", "tensorrt"]) == 1
    assert "no NVIDIA driver" in capsys.readouterr().out


def test_the_networks_are_those_of_their_papers() -> None:
    """The counts that are known of them, with ten classes in the place of a thousand."""
    counts = {kind: sum(p.numel() for p in kind().parameters()) for kind in (ResNet50, ViT)}
    assert counts[ResNet50] == 25_557_032 - 1000 * 2049 + 10 * 2049
    assert 21.4e6 < counts[ViT] < 21.8e6
    with torch.inference_mode():
        assert ViT().eval()(torch.randn(1, *SUBJECTS["vit"].shape)).shape == (1, 10)


def test_a_driver_of_which_nothing_can_be_used_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check.driver, "is_absent", lambda: False)
    monkeypatch.setattr(check, "GPU", ())
    assert check.main([]) == 1
    assert "nothing was run on a GPU: FAILED" in capsys.readouterr().out


def test_whatever_fails_the_rest_goes_on_and_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine that is not built, a service that does not start: still a file, a table and a verdict."""
    real = check.engines.build

    def build(subject: Subject, precision: str, runtime: str, folder: Path) -> engines.Built:
        if precision == "fp32":
            return engines.Built(subject.name, precision, 0.1, None, folder, {}, problem="out of memory")
        return real(subject, precision, runtime, folder)

    def broken(*_: object) -> served.Served:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(check.engines, "build", build)
    monkeypatch.setattr(check.served, "serve", broken)
    monkeypatch.setattr(check.timing, "others", lambda *_: {"a rival": lambda: 1 / 0})
    monkeypatch.setattr(check.training, "train_and_prune", lambda device: [(True, "trained")])
    asked = ["--runtime", "openvino", "--networks", "cnn", "--precisions", "fp32,bf16", "--rounds", "2"]
    assert check.main([*asked, "--out", str(tmp_path)]) == 1
    told = (tmp_path / "gpu-openvino.txt").read_text()
    assert "FAILED: cnn fp32: out of memory" in told
    assert "a rival cannot be measured: division by zero" in told
    assert "2 rounds of loading and closing cnn bf16 keep" in told
    assert "FAILED: serving through HTTP: ConnectionError: nobody answers" in told
    assert "ok: trained" in told
    report = json.loads((tmp_path / "gpu-openvino.json").read_text())
    assert [one["precision"] for one in report["engines"]] == ["fp32", "bf16"]
    assert [row["who"] for row in report["speed"]["cnn"]] == ["openvino bf16"]
    assert report["failed"] >= 2


def test_the_table_and_the_aims() -> None:
    def row(who: str, p50: float) -> dict[str, object]:
        return {"who": who, "p50_ms": p50, "p99_ms": 2 * p50, "best": 1000.0, "batch": 8}

    found = served.Served(alone_ms=1.3, alone_p99_ms=1.9, engine_ms=1.0, best=900.0, clients=64, busy=0.95)
    rows = [row("torch eager fp32", 6.0), row("torch.compile fp16", 1.2), row("tensorrt fp16", 1.0)]
    report = {
        "runtime": "tensorrt", "served": {"added_ms": found.added_ms, "busy": found.busy},
        "speed": {"resnet50": [*rows, telling.through_http("tensorrt", "fp16", found)]},
    }  # fmt: skip
    lines = list(telling.table(report))
    assert lines[-1].split() == ["tensorrt", "fp16", "through", "HTTP", "1.300", "1.900", "900", "64", "clients"]
    assert lines[-2].split() == ["tensorrt", "fp16", "1.000", "2.000", "1000", "batch", "8"]
    assert [line.partition(":")[0] for line in telling.aims(report)] == [
        "aim reached", "aim NOT reached", "aim reached", "aim reached"
    ]  # fmt: skip
    assert all("not measured" in line for line in telling.aims({"runtime": "tensorrt", "speed": {}}))


@pytest.mark.parametrize("wrong", [["--runtime", "nosuch"], ["--networks", "cnn,lenet"], ["--precisions", "fp8"]])
def test_what_is_not_known_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check.main(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
