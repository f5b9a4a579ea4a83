"""Answers of the Open Inference Protocol: as JSON, as bytes, as classes."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from app.domain.records import Tensor
from app.serving import oip_answer
from app.serving.oip import DATATYPES, Form
from app.serving.oip_outputs import Want
from app.serving.oip_request import Header

from .test_oip_request import NUMBERS, Lane

X = Tensor(name="x", shape=(-1, 3))


def form(labels: tuple[str, ...] | None = None, batched: bool = True) -> Form:
    axis = 0 if batched else None
    lane = Lane([X], [Tensor(name="y", shape=(-1, 3), batch_axis=axis)])
    made = Form("net", lane)  # type: ignore[arg-type]
    made.labels = labels
    return made


def write(form: Form, *wants: Want, id: str | None = None, **outputs: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """(the JSON of the answer, what follows it)."""
    body, length = oip_answer.write(form, Header(id, {}, (), 0, wants), outputs)
    return json.loads(body[:length]), b"" if length is None else body[length:]


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool"])
def test_every_datatype_as_bytes(dtype: str) -> None:
    values = np.array([[1, 0, 1], [0, 0, 1]]).astype(dtype)
    told, data = write(form(), Want("y", True, 0), y=values)
    assert told == {
        "model_name": "net",
        "model_version": "3",
        "outputs": [
            {
                "name": "y",
                "datatype": DATATYPES[dtype],
                "shape": [2, 3],
                "parameters": {"binary_data_size": values.nbytes},
            }
        ],
    }
    assert data == values.tobytes()


def test_json_is_flat_and_has_null_for_what_is_no_number() -> None:
    values = np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32)
    told, _ = write(form(), Want("y", False, 0), id="abc", y=values)
    assert told["id"] == "abc"
    assert told["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1.5, None, None, None]}]
    _, data = write(form(), Want("y", True, 0), y=values)
    assert data == values.tobytes()


@pytest.mark.parametrize("binary", [False, True])
def test_views_and_scalars_are_written_in_row_major_order(binary: bool) -> None:
    whole = np.arange(12, dtype=np.int64).reshape(3, 4)
    told, data = write(form(), Want("y", binary, 0), Want("s", binary, 0), y=whole.T[1:, ::2], s=np.array(5, np.int32))
    if binary:
        assert np.frombuffer(data[:-4], np.int64).tolist() == [1, 9, 2, 10, 3, 11]
        assert data[-4:] == struct.pack("<i", 5)
    else:
        assert [o["data"] for o in told["outputs"]] == [[1, 9, 2, 10, 3, 11], [5]]
    assert [o["shape"] for o in told["outputs"]] == [[3, 2], []]


def test_outputs_come_in_the_order_asked_for_each_in_its_form() -> None:
    a, b = np.array([[1.0]], np.float32), np.array([[7]], np.uint8)
    told, data = write(form(), Want("b", True, 0), Want("a", False, 0), a=a, b=b)
    assert [o["name"] for o in told["outputs"]] == ["b", "a"]
    assert told["outputs"][1]["data"] == [1.0]
    assert data == b"\x07"


@pytest.mark.parametrize("values", [["grüß", "", "a\udcff"], [b"gr\xc3\xbc\xc3\x9f", b"", b"a\xff"]])
def test_strings(values: list[Any]) -> None:
    array = np.array([values], object)
    _, data = write(form(), Want("y", True, 0), y=array)
    assert data == b"".join(struct.pack("<I", len(e)) + e for e in ("grüß".encode(), b"", b"a\xff"))


def test_strings_as_json() -> None:
    for array in (np.array([["grüß", "b"]]), np.array([["grüß", b"b"]], object)):
        told, _ = write(form(), Want("y", False, 0), y=array)
        assert told["outputs"] == [{"name": "y", "datatype": "BYTES", "shape": [1, 2], "data": ["grüß", "b"]}]


def classes(k: int, values: Any, labels: tuple[str, ...] | None = None, batched: bool = True) -> Any:
    told, _ = write(form(labels, batched), Want("y", False, k), y=np.asarray(values))
    output = told["outputs"][0]
    assert output["datatype"] == "BYTES"
    return output["shape"], output["data"]


def test_classes_are_value_index_and_label_best_first() -> None:
    values = np.array([[0.25, 3.5, -1], [9, 9, 8]], np.float32)
    assert classes(2, values) == ([2, 2], ["3.500000:1", "0.250000:0", "9.000000:0", "9.000000:1"])
    assert classes(1, values, ("a", "b", "c")) == ([2, 1], ["3.500000:1:b", "9.000000:0:a"])
    assert classes(1, values, ("only", "two")) == ([2, 1], ["3.500000:1", "9.000000:0"])
    assert classes(99, values)[0] == [2, 3]  # no more than there are


def test_classes_of_integers_and_of_a_model_without_a_batch() -> None:
    assert classes(2, np.array([[1, 5, 10, 4]], np.uint32)) == ([1, 2], ["10:2", "5:1"])
    assert classes(2, np.array([-1, -5, 7], np.int8), batched=False) == ([2], ["7:2", "-1:0"])
    assert classes(1, np.array([[True, False]])) == ([1, 1], ["1:0"])


def test_bfloat16_is_answered_as_its_bits() -> None:
    one = Form("net", Lane([X], [Tensor(name="y", dtype="bfloat16", shape=(-1, 2))]))  # type: ignore[arg-type]
    array = np.array([[1.0, 2.5]], np.float32)
    told, data = write(one, Want("y", True, 0), y=array)
    assert told["outputs"][0] == {
        "name": "y",
        "datatype": "BF16",
        "shape": [1, 2],
        "parameters": {"binary_data_size": 4},
    }
    assert data == struct.pack("<2H", 0x3F80, 0x4020)
    told, _ = write(one, Want("y", False, 1), y=array)
    assert told["outputs"][0]["data"] == ["2.500000:1"]


def test_what_is_no_number_comes_last() -> None:
    assert classes(3, np.array([[np.nan, 1, np.inf]], np.float32))[1] == ["inf:2", "1.000000:1", "nan:0"]


def test_classes_as_bytes() -> None:
    told, data = write(form(), Want("y", True, 1), y=np.array([[0.5, 0.25]], np.float32))
    assert told["outputs"][0]["shape"] == [1, 1]
    assert data == struct.pack("<I", 10) + b"0.500000:0"
