"""The quick way from JSON to tensors says the same as the slow one of every body that it does not leave to it."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.domain.records import Signature, Tensor
from app.serving import json_numbers, json_tensors

FLOATS = ["float16", "float32", "float64", "bfloat16"]
WHOLE = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
ODD_NUMBERS = [
    "-0", "-0.0", "0e1", "-0e1", "1.0", "1e0", "1E+2", "1e-2", "1e39", "-1e39", "3.4028235677973365e38",
    "3.4028235677973366e38", "3.4028236e38", "1e-50", "1.4e-45", "7.1e-46", "1.1754943e-38", "5e-324", "1e400",
    "-1e400", "1e-400", "16777217", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616",
    "123456789012345678901234567890", "1e16", "0.1", "0.30000001192092896", "65504", "65519.99", "65520", "127",
    "128", "-128", "-129", "255", "256", "-1", "2.5", "1e15", "4294967295", "4294967296",
    "0.000000000000000000000000000000000000000000001", "1.00000005960464477539062500000000000000000001",
]  # fmt: skip
NO_NUMBERS = ["true", "false", "null", '"1"', '""', "NaN", "Infinity", "01", "1.", ".5", "+1", "-", "[]", "[1]", "{}"]
NO_NUMBERS += ['{"a":1}', "[[1]]", "1 2", "", '"["', '"\\u005b"', "1,1", "1],[1"]
NUMBERS = st.one_of(
    st.integers(0, 255).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-4, 4, width=32).map(repr),
    st.integers(-(2**64), 2**65).map(str),
    st.sampled_from(ODD_NUMBERS),
)
USUAL = st.one_of(
    st.floats(-1e30, 1e30).map(repr),
    st.floats(-4, 4, width=32).map(repr),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.sampled_from([number for number in ODD_NUMBERS if abs(float(number)) < 3.4e38 and len(number) < 20]),
)
SPACES = st.sampled_from(["", "", "", " ", "\n\t", "\r\n  "])
BROKEN = st.sampled_from([*b'[]{},:"\\ 01e.-tn', 0, 0xEF, 0xFF, 0xC3])


@st.composite
def requests(draw: st.DrawFn) -> tuple[Signature, bytes]:
    """A signature, and a body that fits it but for some damage."""
    damaged = draw(st.booleans())
    leaves = draw(st.sampled_from([NUMBERS if damaged else USUAL, USUAL, st.integers(0, 5).map(str)]))
    space = draw(st.sampled_from([st.just(""), st.just(" "), SPACES]))

    def nested(shape: list[int]) -> str:
        if not shape:
            odd = damaged and draw(st.integers(0, 12)) == 0
            return draw(space) + draw(st.sampled_from(NO_NUMBERS) if odd else leaves) + draw(space)
        length = max(0, shape[0] + (damaged and draw(st.integers(0, 12)) == 0 and draw(st.integers(-1, 1))))
        return draw(space) + "[" + ",".join(nested(shape[1:]) for _ in range(length)) + "]" + draw(space)

    tensors, entries = [], []
    for number in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        shape = draw(st.lists(st.integers(0 if damaged else 1, 3), max_size=4))
        wanted = [draw(st.sampled_from([size, -1])) for size in shape]
        if damaged and draw(st.integers(0, 9)) == 0:
            wanted.append(1)
        dtype = draw(st.sampled_from([*FLOATS, *WHOLE, "bool", "string"] if damaged else [*FLOATS, "float32", "int64"]))
        tensors.append(Tensor(name=("x", "y[0]", "é")[number], dtype=dtype, shape=tuple(wanted)))
        entries.append(f'"{tensors[-1].name}":{nested(shape)}')
    named = len(tensors) > 1 or draw(st.booleans())
    inputs = "{" + ",".join(draw(st.permutations(entries))) + "}" if named else entries[0].partition(":")[2]
    fields = [f'"inputs":{inputs}']
    if draw(st.booleans()):
        odd_top = ["null", "true", "2.0", "[1]"] if damaged else []
        fields.append('"top_k":' + draw(st.sampled_from(["3", "0", *odd_top])))
    if draw(st.booleans()):
        odd_outputs = ["[]", "null", '"a"', "[1]", '["["]', '[["a"]]', '{"a":1}'] if damaged else []
        names = draw(st.sampled_from(['["a"]', '["b","a"]', *odd_outputs]))
        fields.append(f'"outputs":{names}')
    if damaged and draw(st.integers(0, 4)) == 0:
        fields.append(draw(st.sampled_from(['"inputs":[1]', '"more":1', '"top_k":1', '"inputs":{"x":[1]}', '"":""'])))
    body = ("{" + ",".join(draw(st.permutations(fields))) + "}" + draw(space)).encode()
    if damaged and draw(st.integers(0, 3)) == 0:
        at, byte = draw(st.integers(0, len(body))), bytes([draw(BROKEN)])
        body = body[:at] + byte + body[at + draw(st.integers(0, 1)) :]
    return Signature(inputs=tuple(tensors)), body


ONE = Signature(inputs=(Tensor(name="x", shape=(-1, 2)),))


@settings(max_examples=150, deadline=None)
@given(requests())
@example((ONE, b'\xef\xbb\xbf{"inputs":[[1,2]]}'))
@example((ONE, b'{"inputs":[[1,2]],"inputs":[[3,4]]}'))
@example((ONE, b'{"inputs":[[1,2]],"\\u0069nputs":[[3,4]]}'))
@example((ONE, b'{"inputs":{"x":[[1,2]],"x":[[3,4]]}}'))
@example((ONE, b'{"\\u0069nputs":[[1,2]]}'))
@example((ONE, b'{"inputs":[[[1],[2]]]}'))
@example((ONE, b'{"inputs":[[[1,2],[]]]}'))
@example((ONE, b'{"inputs":[[1,2],3,4]}'))
@example((ONE, b'{"inputs":[[1,2]],"top_k":[]}'))
@example((ONE, b'{"inputs":[[1,2]]} {}'))
@example((ONE, b'{"inputs":[[1,2]]}\0'))
@example((ONE, b'{"inputs":' + b"[" * 2000 + b"]" * 2000 + b"}"))
@example((ONE, b'{"inputs":' + b"[" * 900 + b"1,2" + b"]" * 900 + b"}"))
def test_both_ways_agree(asked: tuple[Signature, bytes]) -> None:
    signature, body = asked

    quick = json_numbers.read(body, signature)
    if quick is None:
        return
    parsed = json_tensors.parse(body)  # where this finds something wrong, the quick way should have seen it
    slow = json_tensors.tensors(parsed["inputs"], signature)
    assert (quick.outputs, quick.top_k) == (parsed.get("outputs"), parsed.get("top_k"))
    assert list(quick.inputs) == list(slow)
    for name, array in slow.items():
        found = quick.inputs[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE])
def test_the_quick_way_is_taken(dtype: Any) -> None:
    signature = Signature(inputs=(Tensor(name="x", dtype=dtype, shape=(-1, 1, 2, 2)),))
    found = json_numbers.read(b'{ "inputs": [[[[1, 2], [3, 100]]]], "outputs": ["y"], "top_k": 3 }', signature)
    assert found is not None
    np.testing.assert_array_equal(found.inputs["x"], [[[[1, 2], [3, 100]]]])
    assert found.inputs["x"].dtype == ("float32" if dtype == "bfloat16" else dtype)
    assert found.inputs["x"].flags.writeable
    assert (found.outputs, found.top_k) == (["y"], 3)


def test_several_inputs_and_single_numbers() -> None:
    signature = Signature(
        inputs=(
            Tensor(name="input", shape=(-1, 3)),
            Tensor(name="sr", dtype="int64", shape=(), batch_axis=None),
            Tensor(name="ids", dtype="uint64", shape=(-1,)),
        )
    )
    body = b'{"inputs":{"sr":16000,"ids":[18446744073709551615],"input":[[0.5,-1e-3,3e38]]}}'
    found = json_numbers.read(body, signature)
    assert found is not None
    assert list(found.inputs) == ["input", "sr", "ids"]
    assert found.inputs["sr"].shape == ()
    assert found.inputs["ids"].tolist() == [2**64 - 1]
    assert found.inputs["input"].tolist() == [[0.5, float(np.float32(-1e-3)), float(np.float32(3e38))]]
    assert json_numbers.read(body.replace(b"16000", b"1.5"), signature) is None


@pytest.mark.parametrize("rows", [1, 40])  # few numbers, and more than are multiplied at once
@pytest.mark.parametrize(
    ("number", "taken"),
    [(b"3e38", True), (b"-3e38", True), (b"1e39", False), (b"-1e39", False), (b"1e300", False)],
)
def test_numbers_near_the_largest(rows: int, number: bytes, taken: bool) -> None:
    values = [[0.0] * 400] * (rows - 1) + [[0.5] * 399 + [7e7]]
    body = b'{"inputs":%b}' % orjson.dumps(values).replace(b"70000000.0", number)
    found = json_numbers.read(body, Signature(inputs=(Tensor(name="x", shape=(-1, 400)),)))
    assert (found is not None) == taken
    assert found is None or found.inputs["x"][-1, -1] == np.float32(number)


def test_threads_do_not_disturb_each_other() -> None:
    signature = Signature(inputs=(Tensor(name="x", shape=(-1, 50)),))

    def read(number: int) -> bool:
        found = json_numbers.read(orjson.dumps({"inputs": [[number] * 50] * (1 + number % 7)}), signature)
        return found is not None and set(found.inputs["x"].ravel().tolist()) == {float(number)}

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(400)))


def test_without_the_library_all_is_left_to_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simdjson", None)
    spec = importlib.util.spec_from_file_location("without", json_numbers.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "without", without)
    spec.loader.exec_module(without)
    assert without.read(b'{"inputs":[[1,2]]}', ONE) is None
