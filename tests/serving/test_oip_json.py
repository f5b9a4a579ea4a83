"""Requests of numbers as JSON are read by simdjson: with the same outcome as by orjson, whatever they hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.domain.records import Signature, Tensor
from app.errors import Problem
from app.serving import oip_json, oip_request
from app.serving.oip import DATATYPES, Form

DTYPES = ["float32", "float64", "int8", "int64", "uint16", "uint64", "bool", "string", "float16"]
NUMBERS = st.one_of(
    st.integers(0, 5).map(str),
    st.floats(-4, 4, width=32).map(repr),
    st.sampled_from(["-0", "-0.0", "1e39", "1e400", "1e-50", "2.0", "9007199254740993", "-9223372036854775808"]),
    st.sampled_from(["9223372036854775808", "18446744073709551616", "256", "3.4028235677973366e38", "5e-324"]),
)
ODD = ["true", "null", '"1"', '"["', "[]", "[1]", "[[1]]", "{}", '{"a":[1]}', "NaN", "01", "", "1,1", "1],[1"]
PAST = b" " * 512  # so that a request is not too small to be worth it


class Version:
    version = 3
    labels = None


class Lane:
    """As much of a lane as a form looks at."""

    version = Version()

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        self.signature = Signature(inputs=inputs, outputs=(Tensor(name="y", shape=(-1, 2)),))


def form(*inputs: Tensor) -> Form:
    return Form("net", Lane(inputs))  # type: ignore[arg-type]


@st.composite
def requests(draw: st.DrawFn) -> tuple[Form, bytes]:
    """A form, and a request that fits it but for some damage."""
    damaged = draw(st.booleans())
    leaves = NUMBERS if damaged else st.floats(-4, 4, width=32).map(repr)
    tensors, entries = [], []
    for name in ("x", "s")[: draw(st.integers(1, 2))]:
        dtype = draw(st.sampled_from(DTYPES if damaged else ["float32", "float64"]))
        shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        tensors.append(Tensor(name=name, dtype=dtype, shape=tuple(shape), batch_axis=None))  # type: ignore[arg-type]
        flat = [math.prod(shape)]
        sizes = draw(st.sampled_from([shape, flat, [1, *shape], shape[1:], [4]] if damaged else [shape, flat]))

        def nested(left: list[int]) -> str:
            if not left:
                odd = damaged and draw(st.integers(0, 9)) == 0
                return draw(st.sampled_from(ODD) if odd else leaves)
            return "[" + ",".join(nested(left[1:]) for _ in range(left[0])) + "]"

        fields = [f'"name":"{name}"', f'"shape":{shape}', f'"datatype":"{DATATYPES[dtype]}"', f'"data":{nested(sizes)}']
        if damaged and draw(st.integers(0, 3)) == 0:
            more = [
                '"data":[1]',
                '"name":"x"',
                '"parameters":{"a":[[1],"["]}',
                '"parameters":{}',
                '"data":{}',
                '"more":[',
            ]
            fields.append(draw(st.sampled_from(more)))
        entries.append("{" + ",".join(draw(st.permutations(fields))) + "}")
    fields = [f'"inputs":[{",".join(entries)}]']
    if draw(st.booleans()):
        more = ['"id":"7"', '"outputs":[{"name":"y","parameters":{"binary_data":false}}]', '"parameters":{"timeout":5}']
        more += ['"inputs":[]', '"inputs":{}', '"id":"["', '"outputs":[[]]'] if damaged else []
        fields.append(draw(st.sampled_from(more)))
    return form(*tensors), ("{" + ",".join(draw(st.permutations(fields))) + "}").encode()


def outcome(form: Form, body: bytes) -> Any:
    try:
        header, inputs = oip_request.read(form, body, None)
    except Problem as problem:
        # Where a body is no JSON, the text says at which byte.
        return problem.code, problem.hint, problem.code == "bad_json" or problem.detail
    arrays = [(name, a.dtype, a.shape, a.tolist() if a.dtype.hasobject else a.tobytes()) for name, a in inputs.items()]
    return arrays, header.id, header.wants, header.timeout_us


TWO = form(Tensor(name="x", shape=(-1, 2)))


@settings(max_examples=150, deadline=None)
@given(requests())
@example((TWO, b'{"inputs":{}}'))
@example((TWO, b'{"inputs":[""]}'))
@example((TWO, b'{"inputs":""}'))
@example((TWO, b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[[1],[2]]]}]}'))
@example((TWO, b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,[2]]}]}'))
@example((TWO, b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,2],[]]}]}'))
def test_both_ways_agree(asked: tuple[Form, bytes]) -> None:
    form, body = asked
    # What does not begin with a brace is left to orjson.
    assert outcome(form, body + PAST) == outcome(form, b" " + body + PAST)


@pytest.mark.parametrize("data", ["[1,2,3,4]", "[[1,2],[3,4]]", "[[[1],[2]],[[3],[4]]]"])
def test_numbers_stay_unread_until_wanted(data: str) -> None:
    body = f'{{"id":"1","inputs":[{{"name":"x","shape":[2,2,1],"datatype":"FP32","data":{data}}}]}}'.encode()
    given = oip_json.loads(body + PAST)
    assert isinstance(given["inputs"][0]["data"], oip_json.Values)
    found = oip_request.read(form(Tensor(name="x", shape=(-1, 2, 1))), body + PAST, None)[1]["x"]
    assert found.tolist() == [[[1], [2]], [[3], [4]]]
    assert isinstance(oip_json.loads(body)["inputs"][0]["data"], list)  # too small to be worth it
