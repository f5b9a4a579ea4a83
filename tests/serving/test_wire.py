"""Bodies of /predict: every way to say a tensor, and every way to say it wrong."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from app.domain.records import Made, Signature, Tensor, Version
from app.errors import BadRequest, BadTensor, NotAcceptable, Problem, TooLarge, UnsupportedMedia
from app.serving import arrays, predictions, wire


def version(signature: Signature, **fields: Any) -> Version:
    return Version.model_validate(
        {
            "name": "digits", "version": 5, "format": "openvino", "folder": "f", "files": {}, "bytes": 0,
            "signature": signature, "made_by": Made(job="j", spec={}), "created_at": "2026-01-01T00:00:00.000Z",
        }
        | fields
    )  # fmt: skip


X = Tensor(name="x", shape=(-1, 3))
ONE = version(Signature(inputs=(X,), outputs=(Tensor(name="logits", shape=(-1, 3)), Tensor(name="z", shape=(-1, 1)))))
VAD = version(
    Signature(
        inputs=(
            Tensor(name="input", shape=(-1, -1)),
            Tensor(name="state", shape=(2, -1, 4), batch_axis=1),
            Tensor(name="sr", dtype="int64", shape=(), batch_axis=None),
        ),
        outputs=(Tensor(name="output", shape=(-1, 1)),),
    )
)
PICTURE = version(
    Signature(inputs=(Tensor(name="x", shape=(-1, 1, 4, 6)),), outputs=(Tensor(name="logits", shape=(-1, 3)),)),
    preprocess={"resize": [4, 6], "channels": 1},
    labels=("a", "b", "c"),
)


def typed(dtype: Any, shape: tuple[int, ...] = (-1, 2)) -> Version:
    return version(Signature(inputs=(Tensor(name="x", dtype=dtype, shape=shape),)))


def from_json(body: Any, of: Version = ONE) -> wire.Asked:
    return wire.decode("json", body if isinstance(body, bytes) else orjson.dumps(body), of, limit=1 << 20)


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def from_npy(array: np.ndarray | bytes, of: Version = ONE) -> wire.Asked:
    return wire.decode("npy", array if isinstance(array, bytes) else npy(array), of, limit=1 << 20)


def png(size: tuple[int, int] = (6, 4), value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, "PNG")
    return stream.getvalue()


def test_json_for_one_input() -> None:
    for body in ({"inputs": [[1, 2.5, 3]]}, {"inputs": {"x": [[1, 2.5, 3]]}}):
        asked = from_json(body)
        assert asked.inputs["x"].dtype == np.float32
        np.testing.assert_array_equal(asked.inputs["x"], [[1, 2.5, 3]])
        assert asked.outputs == ("logits", "z")
        assert asked.top_k is None


def test_json_for_several_inputs_with_a_scalar() -> None:
    body = {"inputs": {"sr": 16000, "state": [[[0] * 4], [[1] * 4]], "input": [[0.5, 1]]}, "outputs": ["output"]}
    asked = from_json(body, VAD)
    assert {n: (a.dtype.name, a.shape) for n, a in asked.inputs.items()} == {
        "input": ("float32", (1, 2)),
        "state": ("float32", (2, 1, 4)),
        "sr": ("int64", ()),
    }
    assert asked.inputs["sr"] == 16000


def test_selection_and_top_k() -> None:
    asked = from_json({"inputs": [[1, 2, 3]], "outputs": ["z"], "top_k": 2})
    assert asked.outputs == ("z",)
    assert asked.top_k == 2


@pytest.mark.parametrize("space", ["", " "])  # read by simdjson, and as what is unusual is
def test_what_the_query_wants_of_a_json_body(space: str) -> None:
    def asked(said: str) -> wire.Asked:
        body = f'{space}{{"inputs": [[1, 2, 3]]{said}}}'.encode()
        return wire.decode("json", body, ONE, limit=1 << 20, outputs="z", top_k="2")

    assert (asked("").outputs, asked("").top_k) == (("z",), 2)
    both = asked(', "outputs": ["logits"], "top_k": 3')  # what the body says goes first
    assert (both.outputs, both.top_k) == (("logits",), 3)
    with pytest.raises(BadTensor, match="top_k"):
        wire.decode("json", b'{"inputs": [[1, 2, 3]]}', ONE, limit=1 << 20, top_k="none")


@pytest.mark.parametrize(
    ("dtype", "values", "wanted"),
    [
        ("int64", [[1, 2.0]], [[1, 2]]),
        ("int64", [[2**62, -(2**62)]], [[2**62, -(2**62)]]),
        ("uint8", [[0, 255]], [[0, 255]]),
        ("bool", [[True, False]], [[True, False]]),
        ("float64", [[0.1, 2]], [[0.1, 2]]),
        ("float16", [[0.5, 2]], [[0.5, 2]]),
        ("string", [["a", "b"]], [["a", "b"]]),
    ],
)
def test_json_of_every_dtype(dtype: str, values: Any, wanted: Any) -> None:
    found = from_json({"inputs": values}, typed(dtype)).inputs["x"]
    assert found.tolist() == wanted
    assert found.dtype == (object if dtype == "string" else np.dtype(dtype))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": [1, 2, 3]}, r"must be float32 \[-1, 3\], and is \[3\]: the batch axis is missing.*\[1, 3\]"),
        ({"inputs": [[1, 2]]}, r"must be float32 \[-1, 3\], and is \[1, 2\]"),
        ({"inputs": [[[1, 2, 3]]]}, r"and is \[1, 1, 3\]"),
        ({"inputs": [[1, 2, 3], [1, 2]]}, r"ragged.*\[2, 3\]"),
        ({"inputs": [[1, 2, 3], 4]}, "mixes"),
        ({"inputs": [[1, 2, [3]]]}, "mixes"),
        ({"inputs": []}, "empty"),
        ({"inputs": [[]]}, r"\[1, 0\]"),
        ({"inputs": [["1", "2", "3"]]}, r"holds strings \(value 0 of 3\)"),
        ({"inputs": [[1, None, 3]]}, r"holds null \(value 1"),
        ({"inputs": [[True, False, True]]}, "booleans"),
        ({"inputs": [[1, {}, 3]]}, "objects"),
        ({"inputs": 3}, r"and is \[\]"),
        ({"inputs": None}, r"and is \[\]"),
        ({"inputs": [[1, 1e300, 3]]}, "1e\\+300, too large for float32"),
        ({"inputs": {"y": [[1, 2, 3]]}}, r"missing \['x'\], unknown \['y'\]"),
        ({"inputs": {}}, r"missing \['x'\]"),
        ({"inputs": {"x": [[1, 2, 3]], "y": 1}}, r"unknown \['y'\]"),
        ({"instances": [[1, 2, 3]]}, '"inputs"'),
        ([[1, 2, 3]], '"inputs"'),
        ({"inputs": [[1, 2, 3]], "topk": 3}, r"unknown fields \['topk'\]"),
        ({"inputs": [[1, 2, 3]], "outputs": ["nope"]}, r"no outputs \['nope'\]"),
        ({"inputs": [[1, 2, 3]], "outputs": []}, "list of names"),
        ({"inputs": [[1, 2, 3]], "outputs": "z"}, "list of names"),
        ({"inputs": [[1, 2, 3]], "top_k": 0}, "top_k"),
        ({"inputs": [[1, 2, 3]], "top_k": True}, "top_k"),
        ({"inputs": [[1, 2, 3]], "top_k": 1.5}, "top_k"),
        (b'{"inputs": [[1, NaN, 3]]}', r"input 'x' holds NaN at \[0, 1\]"),
        (b'{"inputs": [[1, 2, 3], [1, 2, -Infinity]]}', r"infinity at \[1, 2\]"),
        (b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deep"),
        (b'{"inputs": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", r"must be float32 \[-1, 3\]"),
        (b'{"inputs": ' + b"[" * 100_000 + b"NaN", "nested too deep"),
    ],
)
def test_json_that_is_wrong(body: Any, said: str) -> None:
    with pytest.raises(BadTensor, match=said) as caught:
        from_json(body)
    assert caught.value.status == 422
    assert caught.value.hint or caught.value.code == "too_deep"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"inputs": [[1,2,3]]', b"{'inputs': 1}", b'{"inputs": 1e999}']
)
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        from_json(body)
    assert caught.value.status in (400, 422)


@pytest.mark.parametrize(
    ("dtype", "values", "said"),
    [
        ("int64", [[1, 2.5]], "2.5, which is no integer"),
        ("int64", [["1", 2]], "strings"),
        ("int64", [[True, 2]], "booleans"),
        ("uint8", [[0, 256]], "uint8"),
        ("uint8", [[0, -1]], "uint8"),
        ("int64", [[2**63, 0]], "int64"),
        ("bool", [[1, 0]], "numbers"),
        ("string", [["a", 1]], "numbers"),
        ("float16", [[1, 1e6]], "too large for float16"),
        ("bfloat16", [["1", 2]], r"bfloat16 \(as float32\)"),
    ],
)
def test_json_of_a_wrong_dtype(dtype: str, values: Any, said: str) -> None:
    with pytest.raises(BadTensor, match=said):
        from_json({"inputs": values}, typed(dtype))


def test_integers_with_infinity_are_refused() -> None:
    with pytest.raises(BadTensor):
        from_json(b'{"inputs": [[1, Infinity]]}', typed("int64"))


def test_npy() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for body in (npy(x), npy(np.asfortranarray(x)), npy(x.astype(">f4"))):
        found = from_npy(body).inputs["x"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, x)


def test_npz() -> None:
    given = {"input": np.zeros((1, 8), np.float32), "state": np.ones((2, 1, 4), np.float32), "sr": np.array(16000)}
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **given)
        asked = wire.decode("npz", stream.getvalue(), VAD, limit=1 << 20, outputs="output", top_k="3")
        assert asked.inputs.keys() == given.keys()
        assert asked.outputs == ("output",)
        assert asked.top_k == 3


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3)), r"must be float32 \[-1, 3\], and is float64 \[2, 3\]"),
        (np.zeros((2, 3), np.int32), "int32"),
        (np.zeros((2, 4), np.float32), r"\[2, 4\]"),
        (np.zeros(3, np.float32), "the batch axis is missing"),
        (np.zeros((0, 3), np.float32), "empty"),
        (np.full((2, 3), np.nan, np.float32), r"NaN at \[0, 0\]"),
        (np.array([[1, 2, 3], [4, np.inf, 6]], np.float32), r"infinity at \[1, 1\]"),
        (np.zeros((2, 3), [("a", "f4")]), "holds"),
        (np.array([["a", "b", "c"]]), "holds <U1"),
        (np.array([["2026-01-01"] * 3], "M8[D]"), "holds datetime64"),
    ],
)
def test_npy_that_does_not_fit(array: np.ndarray, said: str) -> None:
    with pytest.raises(BadTensor, match=said):
        from_npy(array)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x09\x00\x10\x00" + b" " * 40,
        npy(np.zeros((2, 3), np.float32))[:-1],
        npy(np.zeros((2, 3), np.float32)) + b"\0",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }\n"),
        header("__import__('os').system('true')\n"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"),
        header("((((((((((((" * 200),
        b"random bytes" * 100,
    ],
)
def test_npy_that_is_broken(body: bytes) -> None:
    with pytest.raises((BadRequest, BadTensor)):
        from_npy(body)


def test_a_pickle_in_an_npy_is_not_loaded() -> None:
    with pytest.raises(BadTensor, match="never unpickled"):
        from_npy(npy(np.array([{"a": 1}], dtype=object), allow_pickle=True))


def test_npy_for_several_inputs() -> None:
    with pytest.raises(BadTensor, match="missing"):
        from_npy(np.zeros((1, 2), np.float32), VAD)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"no zip", BadRequest),
        (zipped({"x.npy": npy(np.zeros((1, 3), np.float32))})[:-30], BadRequest),
        (zipped({"x.npy": b"no npy"}), BadRequest),
        (zipped({"y.npy": npy(np.zeros((1, 3), np.float32))}), BadTensor),
        (zipped({}), BadTensor),
        (zipped({"x.npy": b"", "../../x.npy": b""}), BadTensor),
        (zipped({"x.npy": npy(np.zeros((1000, 3000), np.float32))}), TooLarge),
        (zipped({"x.npy": npy(np.zeros((1, 3), np.float32))}, zipfile.ZIP_LZMA), BadTensor),
    ],
)
def test_npz_that_is_wrong(body: bytes, kind: type[Problem]) -> None:
    with pytest.raises(kind):
        wire.decode("npz", body, ONE, limit=1 << 20)


def test_an_npz_that_lies_about_its_size() -> None:
    body = bytearray(zipped({"x.npy": npy(np.zeros((100_000, 3), np.float32))}))
    at = body.rindex(b"PK\x01\x02")
    body[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    with pytest.raises(BadRequest):
        wire.decode("npz", bytes(body), ONE, limit=1 << 20)


def of_images(images: list[bytes], **chosen: str) -> wire.Asked:
    rows: list[Any] = []
    for image in images:
        try:
            rows.append(wire.decode_image(image, PICTURE))
        except BadTensor as error:
            rows.append(error)
    return wire.images_asked(rows, PICTURE, **chosen)


def test_images() -> None:
    asked = of_images([png(value=255), png((12, 8))], top_k="1")
    assert asked.inputs["x"].shape == (2, 1, 4, 6)
    np.testing.assert_allclose(asked.inputs["x"][0], 1)
    assert asked.top_k == 1


@pytest.mark.parametrize("images", [[b"no image"], [png(), b"no image"], [png()[:40]], []])
def test_images_that_are_wrong(images: list[bytes]) -> None:
    with pytest.raises(BadTensor) as caught:
        of_images(images)
    assert ("image 1" in caught.value.detail) == (len(images) == 2)


def test_kinds_of_body() -> None:
    assert wire.body_kind("application/json; charset=utf-8", ONE) == "json"
    assert wire.body_kind("Application/X-NPY", ONE) == "npy"
    assert wire.body_kind("image/png", PICTURE) == "image"
    with pytest.raises(
        UnsupportedMedia, match="application/json, application/x-npy, application/x-npz, not 'text/html'"
    ):
        wire.body_kind("text/html", ONE)
    with pytest.raises(UnsupportedMedia, match="no preprocess"):
        wire.body_kind("image/png", ONE)
    with pytest.raises(UnsupportedMedia, match="no Content-Type"):
        wire.body_kind("", PICTURE)


@pytest.mark.parametrize(
    ("accept", "body", "outputs", "kind"),
    [
        (None, "json", 2, "json"),
        ("*/*", "npy", 1, "npy"),
        ("*/*", "npy", 2, "npz"),
        ("", "npz", 1, "npz"),
        ("*/*", "image", 1, "json"),
        ("application/x-npy", "json", 1, "npy"),
        ("application/json", "npy", 1, "json"),
        ("application/json, text/plain, */*", "npy", 1, "json"),
        ("application/json;q=0.5, application/x-npz", "npy", 1, "npz"),
        ("text/html, application/*;q=0.2", "json", 1, "json"),
        ("application/json;q=0, */*", "json", 1, "npy"),
        ("application/json;q=0, */*", "json", 2, "npz"),
        ("*/*, application/json;q=0, application/x-npy;q=0", "npy", 1, "npz"),
        ("*/*;q=0.1, application/*;q=0, application/json;q=0.1", "npy", 1, "json"),
        ("application/x-npy, application/json;q=0.5", "json", 2, "json"),
        ("application/json;q=1_0, application/x-npz;q=0.1", "json", 1, "npz"),
    ],
)
def test_kinds_of_answer(accept: str | None, body: wire.Kind, outputs: int, kind: str) -> None:
    assert wire.answer_kind(accept, body, outputs) == kind


def test_answers_that_cannot_be_made() -> None:
    with pytest.raises(NotAcceptable, match="text/html"):
        wire.answer_kind("text/html", "json", 1)
    with pytest.raises(NotAcceptable) as caught:
        wire.answer_kind("application/x-npy", "npy", 2)
    assert "x-npz" in str(caught.value.hint)
    with pytest.raises(NotAcceptable):
        wire.answer_kind("application/json;q=0", "json", 1)
    with pytest.raises(NotAcceptable):
        wire.answer_kind("application/*;q=0, */*", "json", 1)


def test_nan_in_an_answer_is_null_whatever_the_dtype() -> None:
    outputs = {
        "logits": np.array([[1, np.nan, np.inf]], np.float32),
        "half": np.array([np.nan, 1], np.float16),
        "double": np.array(np.nan),
        "long": np.array([2**60]),
        "flag": np.array(True),
        "view": np.zeros((3, 4), np.float32)[:, 1],
        "text": np.array([["a", b"b"]], dtype=object),
    }
    asked = wire.Asked({}, tuple(outputs))
    body, media = wire.encode("json", outputs, asked, ONE)
    assert media == "application/json"
    assert json.loads(body, parse_constant=pytest.fail) == {
        "model": "digits@5",
        "outputs": {
            "logits": [[1, None, None]],
            "half": [None, 1],
            "double": None,
            "long": [2**60],
            "flag": True,
            "view": [0, 0, 0],
            "text": [["a", "b"]],
        },
    }


def test_predictions_beside_the_outputs_chosen() -> None:
    outputs = {"logits": np.array([[1, 3, 2]], np.float32)}
    found = orjson.loads(wire.encode("json", outputs, wire.Asked({}, ("logits",), 2), PICTURE)[0])
    assert [p["label"] for p in found["predictions"][0]] == ["b", "c"]
    assert found["predictions"][0][0]["score"] == pytest.approx(0.6652409)


def test_npy_and_npz_answers() -> None:
    outputs = {"a/b.tmp_1": np.ones((1, 2), np.float32), "file": np.array([True])}
    body, _ = wire.encode("npz", outputs, wire.Asked({}, ("a/b.tmp_1", "file")), ONE)
    found = np.load(io.BytesIO(body))
    assert {n: found[n].dtype.name for n in found.files} == {"a/b.tmp_1": "float32", "file": "bool"}
    body, _ = wire.encode("npy", outputs, wire.Asked({}, ("file",)), ONE)
    assert np.load(io.BytesIO(body)).tolist() == [True]
    with pytest.raises(NotAcceptable):
        arrays.to_npy(np.array(["a"], dtype=object))


def test_probabilities_of_logits_of_logarithms_and_of_themselves() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, -1000.0]])
    plain = predictions.probabilities(logits)
    np.testing.assert_allclose(plain.sum(1), 1)
    np.testing.assert_allclose(plain[0], [0.09003057, 0.24472847, 0.66524096])
    np.testing.assert_allclose(predictions.probabilities(plain), plain)
    np.testing.assert_allclose(predictions.probabilities(np.log(plain[:1])), plain[:1])
    half = predictions.probabilities(plain[:1].astype(np.float16))
    np.testing.assert_allclose(half, plain[:1], atol=1e-3)


def test_top_with_nan_ties_and_few_labels() -> None:
    labels = ("a", "b", "c")
    assert predictions.top({"y": np.zeros((1, 3), np.float32)}, labels, 1) == [[{"label": "a", "score": 1 / 3}]]
    found = predictions.top({"y": np.array([[np.nan, 1, 2]], np.float32)}, labels, None)
    assert found is not None
    assert [p["score"] for p in found[0]] == [None, None, None]
    assert predictions.top({"y": np.zeros((1, 4), np.float32)}, labels, None) is None
    assert predictions.top({"y": np.zeros((1, 3), np.int64)}, labels, None) is None
    found = predictions.top({"i": np.zeros((1, 3), np.int64), "y": np.eye(3, dtype=np.float32)}, labels, 99)
    assert found is not None
    assert [len(row) for row in found] == [3, 3, 3]
