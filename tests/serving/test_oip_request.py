"""Requests of the Open Inference Protocol: every datatype both ways, and every lie answered with what was expected."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

import numpy as np
import pytest

from app.domain.records import Signature, Tensor
from app.errors import BadRequest, Problem
from app.serving import oip_request
from app.serving.oip import DATATYPES, Form

NUMBERS = [name for name in DATATYPES if name not in ("bfloat16", "string", "bool")]


class Version:
    version = 3
    labels = None


class Lane:
    """As much of a lane as a form looks at."""

    version = Version()

    def __init__(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.signature = Signature(inputs=tuple(inputs), outputs=tuple(outputs))


def form(*inputs: Tensor, outputs: tuple[Tensor, ...] = (Tensor(name="y", shape=(-1, 2)),)) -> Form:
    return Form("net", Lane(list(inputs), list(outputs)))  # type: ignore[arg-type]


X = Tensor(name="x", shape=(-1, 3))
PLAIN = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}


def body(*entries: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(entries)} | fields).encode()


def read(form: Form, data: bytes, length: bytes | None = None) -> dict[str, np.ndarray]:
    return oip_request.read(form, data, length)[1]


def binary(entry: dict[str, Any], data: bytes, **fields: Any) -> tuple[bytes, bytes]:
    head = body(entry | {"parameters": {"binary_data_size": len(data)}}, **fields)
    return head + data, str(len(head)).encode()


def refusal(form: Form, data: bytes, length: bytes | None = None) -> str:
    with pytest.raises(Problem) as caught:
        oip_request.read(form, data, length)
    assert caught.value.status in (400, 422)  # a 422 is made a 400 by the route
    return f"{caught.value.detail}. {caught.value.hint}"


def test_flat_and_nested_lists_in_row_major_order() -> None:
    for data in ([1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]):
        found = read(form(X), body(PLAIN | {"data": data}))["x"]
        np.testing.assert_array_equal(found, np.array([[1, 2, 3], [4, 5, 6]], np.float32))
        assert found.dtype == np.float32


def test_lists_may_be_nested_less_deep_than_the_shape() -> None:
    image = Tensor(name="x", shape=(-1, 1, 2, 2))
    entry = {"name": "x", "shape": [2, 1, 2, 2], "datatype": "FP32", "data": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    assert read(form(image), body(entry))["x"].tolist() == [[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_number_as_bytes(dtype: str) -> None:
    values = np.array([[1, 2, 3], [100, 5, 0]], dtype)
    data, length = binary({"name": "x", "shape": [2, 3], "datatype": DATATYPES[dtype]}, values.tobytes())
    found = read(form(Tensor(name="x", dtype=dtype, shape=(-1, 3))), data, length)["x"]  # type: ignore[arg-type]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))  # a view: nothing was copied


def test_bfloat16_comes_as_its_bits_alone() -> None:
    brain = form(Tensor(name="x", dtype="bfloat16", shape=(-1, 3)))
    entry = {"name": "x", "shape": [1, 3], "datatype": "BF16"}
    bits = struct.pack("<3H", 0x3F80, 0xC020, 0x7F80)
    for data, length in (binary(entry, bits), (bits, b"0")):
        found = read(brain, data, length)["x"]
        assert found.dtype == np.float32
        assert found.tolist() == [[1.0, -2.5, float("inf")]]
    assert "JSON has no numbers of BF16" in refusal(brain, body(entry | {"data": [1, 2, 3]}))
    data, length = binary(entry, struct.pack("<3f", 1, 2, 3))
    assert "is 6 bytes, and its binary_data_size 12" in refusal(brain, data, length)


@pytest.mark.parametrize("dtype", [d for d in NUMBERS if d != "float16"])
def test_every_number_as_json(dtype: str) -> None:
    entry = {"name": "x", "shape": [1, 3], "datatype": DATATYPES[dtype], "data": [1, 2, 127]}
    found = read(form(Tensor(name="x", dtype=dtype, shape=(-1, 3))), body(entry))["x"]  # type: ignore[arg-type]
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == [[1, 2, 127]]


def test_integers_at_their_ends() -> None:
    for dtype in ("int64", "uint64"):
        ends = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
        tensor = Tensor(name="x", dtype=dtype, shape=(-1,))  # type: ignore[arg-type]
        entry = {"name": "x", "shape": [2], "datatype": DATATYPES[dtype], "data": ends}
        assert read(form(tensor), body(entry))["x"].tolist() == ends


def test_booleans() -> None:
    flags = Tensor(name="x", dtype="bool", shape=(-1, 3))
    entry = {"name": "x", "shape": [1, 3], "datatype": "BOOL"}
    assert read(form(flags), body(entry | {"data": [True, False, True]}))["x"].tolist() == [[True, False, True]]
    data, length = binary(entry, b"\x01\x00\x01")
    assert read(form(flags), data, length)["x"].tolist() == [[True, False, True]]
    data, length = binary(entry, b"\x01\x02\x01")
    assert "other than 0 and 1" in refusal(form(flags), data, length)


TEXT = Tensor(name="t", dtype="string", shape=(-1, 2))
TEXT_ENTRY = {"name": "t", "shape": [1, 2], "datatype": "BYTES"}


def test_strings_as_json_and_as_bytes() -> None:
    assert read(form(TEXT), body(TEXT_ENTRY | {"data": ["grüß", ""]}))["t"].tolist() == [["grüß", ""]]
    packed = b"".join(struct.pack("<I", len(e)) + e for e in ("grüß".encode(), b""))
    data, length = binary(TEXT_ENTRY, packed)
    assert read(form(TEXT), data, length)["t"].tolist() == [["grüß", ""]]


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        (struct.pack("<I", 900) + b"ab" + struct.pack("<I", 0), "ends 894 bytes after"),
        (struct.pack("<I", 4) + b"abcd" + b"\x01", "ends 3 bytes after"),
        (struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"b" + b"more", "end after 10 bytes"),
        (struct.pack("<I", 1) + b"\xff" + struct.pack("<I", 0), "no UTF-8"),
        (b"\x00\x00", "at least 8 bytes"),
    ],
)
def test_strings_whose_lengths_lie(packed: bytes, told: str) -> None:
    data, length = binary(TEXT_ENTRY, packed)
    assert told in refusal(form(TEXT), data, length)


def test_a_shape_of_more_strings_than_there_are_bytes_takes_no_memory() -> None:
    wide = Tensor(name="t", dtype="string", shape=(-1, -1))
    data, length = binary({"name": "t", "shape": [2**40, 2**40], "datatype": "BYTES"}, b"\x00" * 8)
    assert "at least" in refusal(form(wide), data, length)


def test_several_inputs_binary_and_json_mixed() -> None:
    y = Tensor(name="y", dtype="int64", shape=(-1,))
    z = Tensor(name="z", dtype="uint8", shape=(-1, 2))
    entries = [
        {"name": "z", "shape": [1, 2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}},
        {"name": "y", "shape": [1], "datatype": "INT64", "data": [9]},
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}},
    ]
    head = body(*entries)
    data = head + b"\x07\x08" + np.array([1, 2, 3], np.float32).tobytes()
    found = read(form(X, y, z), data, str(len(head)).encode())
    assert found["x"].tolist() == [[1, 2, 3]]
    assert found["y"].tolist() == [9]
    assert found["z"].tolist() == [[7, 8]]


def test_the_same_header_again_is_not_read_again_and_its_bytes_are() -> None:
    one = form(X)
    for number in range(3):
        values = np.full((1, 3), number, np.float32)
        data, length = binary({"name": "x", "shape": [1, 3], "datatype": "FP32"}, values.tobytes())
        np.testing.assert_array_equal(read(one, data, length)["x"], values)
    assert len(one.headers) == 1
    assert "follow the JSON" in refusal(one, data + b"!", length)
    for number in range(200):
        data, length = binary({"name": "x", "shape": [1, 3], "datatype": "FP32"}, bytes(12), extra=number)
        read(one, data, length)
    assert len(one.headers) <= 64


def test_a_header_with_an_id_is_not_kept() -> None:
    one = form(X)
    data, length = binary({"name": "x", "shape": [1, 3], "datatype": "FP32"}, bytes(12), id="abc")
    header, _ = oip_request.read(one, data, length)
    assert header.id == "abc"
    assert not one.headers


def test_a_body_without_json_is_one_row_of_the_one_input() -> None:
    values = np.array([1, 2, 3], np.float32)
    assert read(form(X), values.tobytes(), b"0")["x"].tolist() == [[1, 2, 3]]
    series = Tensor(name="x", dtype="int16", shape=(-1, -1))
    assert read(form(series), np.arange(5, dtype=np.int16).tobytes(), b"0")["x"].tolist() == [[0, 1, 2, 3, 4]]
    assert "has 7" in refusal(form(X), b"1234567", b"0")
    assert "has 0" in refusal(form(X), b"", b"0")
    assert "cannot be told" in refusal(form(X, TEXT), b"1234", b"0")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "nope"}, "no input 'nope'"),
        ({"name": 3}, "must be an object with a name"),
        ({"datatype": "FP64"}, "FP32 [-1, 3]: its datatype is 'FP64'"),
        ({"datatype": "float"}, "its datatype is 'float'"),
        ({"datatype": None}, "has no datatype"),
        ({"shape": None}, "must be a list of whole numbers"),
        ({"shape": [2, 3.0]}, "must be a list of whole numbers"),
        ({"shape": [True, 3]}, "must be a list of whole numbers"),
        ({"shape": ["2", 3]}, "must be a list of whole numbers"),
        ({"shape": [-2, 3]}, "cannot be negative"),
        ({"shape": [-1, 3]}, "cannot be negative"),
        ({"shape": [-1, 3], "data": []}, "cannot be negative"),
        ({"shape": [-2, -3]}, "cannot be negative"),
        ({"shape": [0, 3], "data": []}, "it is empty"),
        ({"shape": [2**62, 3]}, "values, and its data 6 values"),
        ({"shape": [2**62, 2**62]}, "its shape is"),
        ({"shape": [3]}, "the batch axis is missing"),
        ({"shape": [1, 2, 3]}, "its shape is [1, 2, 3]"),
        ({"shape": [1] * 500}, "500 dimensions"),
        ({"shape": [3, 2]}, "FP32 [-1, 3]: its shape is [3, 2]"),
        ({"data": [1, 2, 3, 4, 5]}, "which is 6 values, and its data 5 values"),
        ({"data": [1, 2, 3, 4, 5, 6, 7]}, "its data 7 values"),
        ({"data": [[1, 2], [3, 4], [5, 6]]}, "its data lists of [3, 2]"),
        ({"data": [[[1, 2, 3]], [[4, 5, 6]]]}, "its data lists of [2, 1, 3]"),
        ({"data": [[1, 2, 3], [4, 5]]}, "ragged"),
        ({"data": [[1, 2, 3], 4]}, "ragged"),
        ({"data": 5}, "its data must be a list"),
        ({"data": {"b64": ""}}, "its data must be a list"),
        ({"data": [1, 2, 3, 4, 5, "6"]}, "strings"),
        ({"data": [1, 2, 3, 4, 5, None]}, "null"),
        ({"data": [1, 2, 3, 4, 5, True]}, "booleans"),
        ({"data": [1, 2, 3, 4, 5, [6]]}, "holds"),
        ({"data": [1, 2, 3, 4, 5, 1e39]}, "too large"),
        ({"parameters": [1]}, "parameters must be an object"),
        ({"parameters": {"binary_data_size": 24}}, "both data and a binary_data_size"),
    ],
)
def test_what_is_wrong_with_an_input(change: dict[str, Any], told: str) -> None:
    assert told in refusal(form(X), body(PLAIN | change))


def test_integers_that_are_none() -> None:
    whole = Tensor(name="x", dtype="int8", shape=(-1, 3))
    entry = {"name": "x", "shape": [1, 3], "datatype": "INT8"}
    assert "no integer" in refusal(form(whole), body(entry | {"data": [1, 2.5, 3]}))
    assert "int8 cannot" in refusal(form(whole), body(entry | {"data": [1, 2, 300]}))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no valid JSON"),
        (b"\x00\xff", "no valid JSON"),
        (b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, NaN, 2]}]}', "no JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"[]", "must be an object"),
        (b"{}", "inputs is missing"),
        (b'{"inputs": {"x": [1]}}', "inputs must be a list"),
        (b'{"inputs": []}', "['x'] are missing"),
        (b'{"inputs": [[1]]}', "inputs[0] must be an object"),
        (body(PLAIN, PLAIN), "'x' is given twice"),
        (body(PLAIN, id=7), "id must be a string"),
        (body(PLAIN, parameters=3), "parameters must be an object"),
        (body(PLAIN, parameters={"binary_data_output": "yes"}), "must be true or false"),
        (body(PLAIN, parameters={"priority": -1}), "priority must be a whole number"),
        (body(PLAIN, parameters={"priority": "high"}), "priority must be a whole number"),
        (body(PLAIN, parameters={"timeout": 1.5}), "it is microseconds"),
        (body(PLAIN, outputs="y"), "outputs must be a list"),
        (body(PLAIN, outputs=["y"]), "each output must be an object"),
        (body(PLAIN, outputs=[{"name": "nope"}]), "no output 'nope'"),
        (body(PLAIN, outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (body(PLAIN, outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "must be true or false"),
        (body(PLAIN, outputs=[{"name": "y", "parameters": {"classification": "3"}}]), "number of classes"),
        (body(PLAIN, outputs=[{"name": "y", "parameters": {"classification": -1}}]), "number of classes"),
    ],
)
def test_what_is_wrong_with_a_request(data: bytes, told: str) -> None:
    assert told in refusal(form(X), data)


def test_missing_inputs_are_named() -> None:
    assert "inputs ['t'] are missing" in refusal(form(X, TEXT), body(PLAIN))


@pytest.mark.parametrize(
    ("size", "sent", "told"),
    [
        (24, 23, "are 24 bytes together, and 23 follow"),
        (24, 25, "are 24 bytes together, and 25 follow"),
        (20, 20, "is 24 bytes, and its binary_data_size 20"),
        (2**62, 24, "is 24 bytes, and its binary_data_size"),
        (-24, 24, "must be a number of bytes"),
        (24.0, 24, "must be a number of bytes"),
        ("24", 24, "must be a number of bytes"),
    ],
)
def test_sizes_that_lie(size: Any, sent: int, told: str) -> None:
    entry = {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = body(entry)
    assert told in refusal(form(X), head + bytes(sent), str(len(head)).encode())


@pytest.mark.parametrize("length", [b"-1", b"abc", b"", b"1e2", b"99999999", b"9" * 400, b"3", "\u0663".encode()])
def test_header_lengths_that_lie(length: bytes) -> None:
    data, _ = binary({"name": "x", "shape": [2, 3], "datatype": "FP32"}, bytes(24))
    told = refusal(form(X), data, length)
    assert "Inference-Header-Content-Length" in told


def test_bytes_without_the_header_that_says_where_they_begin() -> None:
    data, _ = binary({"name": "x", "shape": [2, 3], "datatype": "FP32"}, bytes(24))
    assert "Inference-Header-Content-Length" in refusal(form(X), data)
    entry = {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}
    assert "Inference-Header-Content-Length is missing" in refusal(form(X), body(entry))


def test_half_precision_travels_as_bytes_only() -> None:
    half, out = Tensor(name="x", dtype="float16", shape=(-1, 3)), Tensor(name="y", dtype="float16", shape=(-1, 3))
    one = form(half, outputs=(out,))
    entry = {"name": "x", "shape": [1, 3], "datatype": "FP16"}
    assert "send it as binary" in refusal(one, body(entry | {"data": [1, 2, 3]}))
    data, length = binary(entry, bytes(6))
    assert "ask for it as binary" in refusal(one, data, length)
    data, length = binary(entry, bytes(6), parameters={"binary_data_output": True})
    assert read(one, data, length)["x"].dtype == np.float16
    data, length = binary(entry, bytes(6), outputs=[{"name": "y", "parameters": {"classification": 2}}])
    assert read(one, data, length)["x"].dtype == np.float16


def test_shared_memory_is_refused_with_a_way_out() -> None:
    entry = {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}
    with pytest.raises(BadRequest, match="shared memory"):
        oip_request.read(form(X), body(entry), None)


def test_parameters_for_others_are_passed_over() -> None:
    parameters = {"sequence_id": 5, "sequence_start": True, "sequence_end": False, "anything": "else", "priority": 2}
    header, _ = oip_request.read(form(X), body(PLAIN, parameters=parameters | {"timeout": 1500}, model_name="?"), None)
    assert (header.priority, header.timeout_us) == (2, 1500)
    assert [(w.name, w.binary, w.classes) for w in header.wants] == [("y", False, 0)]


def test_an_output_may_differ_from_the_others() -> None:
    outputs = (Tensor(name="y", shape=(-1, 2)), Tensor(name="z", shape=(-1, 2)))
    asked = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    data = body(PLAIN, outputs=asked, parameters={"binary_data_output": True})
    header, _ = oip_request.read(form(X, outputs=outputs), data, None)
    assert [(w.name, w.binary) for w in header.wants] == [("z", False), ("y", True)]


ODD: list[Any] = [
    None, True, 0, -1, 3, 2**31, 2**62, 2**64 - 1, 1.5, 1e308, "", "x", "FP32", [], {}, [[]], [1, 2, 3], [[1, 2, 3]],
    ["a"], [None], [[1], [2, 3]], [[[[1]]]], {"binary_data_size": 1}, [1e39], [-1, 3],
]  # fmt: skip


def test_whatever_is_sent_is_read_or_refused() -> None:
    """Thousands of requests with a part replaced or missing: an error that nobody foresaw would be a 500."""
    draw = random.Random(7)
    flags = Tensor(name="b", dtype="bool", shape=(-1, 2))
    outputs = (Tensor(name="y", shape=(-1, 2)), Tensor(name="s", dtype="string", shape=(-1, 1)))
    one = form(X, TEXT, flags, outputs=outputs)
    read_right, statuses = 0, set()
    for _ in range(4000):
        request: dict[str, Any] = {
            "inputs": [
                PLAIN | {"shape": [1, 3], "data": [1, 2, 3]},
                TEXT_ENTRY | {"parameters": {"binary_data_size": 10}},
                {"name": "b", "shape": [1, 2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": True, "classification": 1}}, {"name": "s"}],
            "parameters": {"binary_data_output": True, "priority": 1, "timeout": 9},
        }
        at: Any = (request := copy.deepcopy(request))
        while True:
            key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.2:
                break
            at = at[key]
        if isinstance(at, dict) and draw.random() < 0.2:
            del at[key]
        else:
            at[key] = copy.deepcopy(draw.choice(ODD))
        head = json.dumps(request).encode()
        data = head + struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"b" + b"\x00\x01"
        if draw.random() < 0.2:
            data = data[: draw.randrange(len(data))]
        try:
            oip_request.read(one, data, str(len(head)).encode())
            read_right += 1
        except Problem as problem:
            statuses.add(problem.status)
    assert statuses <= {400, 422}
    assert read_right > 100
