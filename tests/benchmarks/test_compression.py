"""The benchmark of the closed loop: what needs no data of others, and how a run is told."""

from pathlib import Path

from benchmarks import compression
from benchmarks.compressing.networks import ResNet18, ResNet20
from benchmarks.compressing.tasks import tasks


def test_without_the_data_of_others_the_digits_are_left(tmp_path: Path) -> None:
    assert list(tasks(None)) == ["digits"]
    assert list(tasks(tmp_path)) == ["digits"]
    arrays = tasks(None)["digits"].arrays()
    assert (len(arrays["x_test"]), arrays["x"].shape[1:]) == (360, (1, 28, 28))


def test_the_networks_are_those_of_the_paper() -> None:
    assert sum(p.numel() for p in ResNet20(3).parameters()) == 269_722
    of_a_thousand_classes = 11_689_512
    assert sum(p.numel() for p in ResNet18().parameters()) == of_a_thousand_classes - 990 * 513


def test_a_run_is_told() -> None:
    at = {"threads": 2, "batch": 1, "ms": 0.5, "ratio": 1.0}
    row = {"parameters": 10, "accuracy": 0.9, "low": 0.8, "high": 0.95, "rows": 100, "speed": [at]}
    told = compression.told(
        {
            "task": "digits", "seed": 0, "winner": "as it is", "verdict": "accepted", "minutes": 1.0,
            "load": (0.1, 0.1, 0.1), "aims": {1: 2.5}, "notes": ["A note."], "failed": {"a rival": "it broke"},
            "rows": {"plain fp32": row, "optimize": row | {"speed": [at | {"ms": 0.2, "ratio": 2.5}]}},
        }
    )  # fmt: skip
    lines = told.splitlines()
    assert "2 threads" in lines[1]
    assert lines[3].startswith("plain fp32")
    assert "90.00 [80.0, 95.0]" in lines[3]
    assert "2.50×" in lines[4]
    assert "a rival: none (it broke)" in lines
    assert "aim at batch 1: 2.5×" in lines
