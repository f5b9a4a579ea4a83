"""What a report says of a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workers.passes._built import built


def told(folder: Path, **about: Any) -> dict[str, Any]:
    (folder / "build.json").write_text(json.dumps(about))
    return built(folder)["build"]


def layers(*precisions: str, products: bool = True) -> list[dict[str, Any]]:
    return [
        {"name": f"l{n}", "type": "conv", "precision": p, "tactic": None, "products": [f"n{n}"] * products}
        for n, p in enumerate(precisions)
    ]


def test_a_runtime_that_tells_nothing(tmp_path: Path) -> None:
    assert built(tmp_path) == {}


def test_layers_by_precision_and_what_stayed(tmp_path: Path) -> None:
    some = layers("fp16", "fp32")
    kept = {"b": "its weight w reaches 1e+05"}
    found = told(tmp_path, layers=some, kept_fp32=kept, range_samples=3)
    assert found["precisions"] == {"fp16": 1, "fp32": 1}
    assert found["layers"] == some
    (note,) = found["notes"]
    assert note == "1 node of the graph stays in fp32: b: its weight w reaches 1e+05."
    found = told(tmp_path, kept_fp32={f"n{i}": "why" for i in range(25)})
    assert found["notes"][0].startswith("25 nodes of the graph stay in fp32: n0: why;")
    assert found["notes"][0].endswith("; and 5 more.")


@pytest.mark.parametrize(
    ("asked", "some", "said"),
    [
        ("fp16", layers("fp16", "fp16", "fp32"), "2 of 3 layers that compute"),
        ("fp16", layers("fp32", "fp32", "fp16"), "not what was asked for: only 1 of 3 layers that compute"),
        # Copies and sums say little of it.
        ("fp16", [*layers("fp16"), *layers("fp32", "fp32", "int64", products=False)], "1 of 1 layers that compute"),
        ("bf16", layers("fp32", "fp32", "int64", products=False), "not what was asked for: only 0 of 2 layers compute"),
        ("int8", layers("int8", "fp16"), "1 of 2 layers that compute convolutions or matrix products compute in int8, "
         "the others in fp16 where they can."),
        ("fp16", layers("?", "?"), None),
        ("fp32", layers("fp32"), None),
        ("fp16", [], None),
    ],
)  # fmt: skip
def test_whether_it_is_what_was_asked_for(
    asked: str, some: list[dict[str, Any]], said: str | None, tmp_path: Path
) -> None:
    notes = told(tmp_path, precision=asked, rest="fp16" if asked == "int8" else None, layers=some)["notes"]
    assert bool(notes) is (said is not None)
    assert said is None or said in notes[0]
    if said and "not what" in said:
        assert "l0 (fp32)" in notes[0]


@pytest.mark.parametrize(
    ("fit", "used", "said"),
    [
        (3, True, "3 of 5 layers have 2:4 weights: TensorRT may"), (3, False, "were not allowed"),
        (0, True, "nothing to leave out"), (0, False, None),
    ],
)  # fmt: skip
def test_sparse_weights(fit: int, used: bool, said: str | None, tmp_path: Path) -> None:
    notes = told(tmp_path, sparse={"layers": fit, "of": 5, "used": used}, notes=["More."])["notes"]
    assert notes[0] == "More."
    assert [said in note for note in notes[1:] if said] == [True] * (said is not None)
