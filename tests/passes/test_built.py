"""What a report says of a build."""

from __future__ import annotations

import json
from pathlib import Path

from workers.passes._built import built


def test_a_runtime_that_tells_nothing(tmp_path: Path) -> None:
    assert built(tmp_path) == {}


def test_layers_by_precision_and_what_stayed(tmp_path: Path) -> None:
    layers = [{"name": n, "type": "conv", "precision": p, "tactic": None} for n, p in (("a", "fp16"), ("b", "fp32"))]
    kept = {"b": "its weight w reaches 1e+05"}
    (tmp_path / "build.json").write_text(json.dumps({"layers": layers, "kept_fp32": kept, "range_samples": 3}))
    found = built(tmp_path)["build"]
    assert found["precisions"] == {"fp16": 1, "fp32": 1}
    assert found["layers"] == layers
    (note,) = found["notes"]
    assert "1 nodes stay in fp32" in note
    assert "b: its weight w reaches 1e+05" in note
