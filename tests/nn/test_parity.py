"""How far an engine's answers lie from its source's, and inputs to find that out with."""

import numpy as np
import pytest
import torch
from torch import nn

from app.domain.records import Signature, Tensor
from app.errors import ParityError, Unprocessable
from workers.nn.export import to_onnx
from workers.nn.macs import macs, onnx_macs, onnx_parameters, onnx_sparsity
from workers.nn.parity import compare, difference
from workers.nn.requests import plan
from workers.nn.settle import settle

BATCHED = Signature(inputs=(Tensor(name="x", shape=(-1, 3)),), outputs=(Tensor(name="y", shape=(-1, 2)),))


class Fake:
    """An engine that is wrong by `off` in the batch of that size."""

    signature = BATCHED

    def __init__(self, off=0.0, size=None):
        self.off, self.size, self.seen = off, size, []

    def infer(self, inputs):
        x = inputs["x"]
        self.seen.append(len(x))
        return {"y": x[:, :2] + (self.off if self.size in (None, len(x)) else 0)}

    def close(self):
        pass


def answer(requests):
    return [{"y": r["x"][:, :2]} for r in requests]


def test_an_equal_engine_is_asked_alone_and_in_its_largest_batch() -> None:
    engine = Fake()
    found = compare(engine, BATCHED, answer, plan(BATCHED, None, lambda r: {}), [], 200, 1e-4, 0)
    assert found.n >= 64
    assert found.max_abs_diff == 0
    assert found.agreed == 1
    assert {1, 200} <= set(engine.seen)


@pytest.mark.parametrize("size", [1, 16])
def test_a_difference_anywhere_fails_with_the_figures(size: int) -> None:
    with pytest.raises(ParityError, match=r"reaches 0\..*'y'.*0\.0001 is tolerated"):
        compare(Fake(0.5, size), BATCHED, answer, plan(BATCHED, None, lambda r: {}), [], 16, 1e-4, 0)


def test_differences_of_odd_values() -> None:
    nan = np.array([np.nan, np.inf, 1.0])
    assert difference(nan, nan) == (0, 1)
    assert difference(np.zeros(3), nan)[0] == np.inf
    assert difference(np.zeros(2), np.zeros(3))[0] == np.inf
    assert difference(np.array([1, 2]), np.array([1, 3])) == (0.5, 1)
    assert difference(np.array([100.0]), np.array([101.0])) == (1.0, 101.0)
    assert difference(np.array(["a"], object), np.array(["a"], object)) == (0, 1)


def test_shapes_are_found_by_trying_and_equal_symbols_get_equal_sizes() -> None:
    open_shape = Signature(inputs=tuple(Tensor(name=n, shape=(-1, -1)) for n in ("a", "b")))

    def ask(request):
        assert request["a"].shape[1] == 48
        return {"y": request["a"] @ request["b"].T}

    found = plan(open_shape, None, ask, symbols={"a": ["batch", "n"], "b": ["batch", "n"]})
    assert found.shapes == {"a": (1, 48), "b": (1, 48)}
    assert plan(open_shape, {"a": [4, 48], "b": [1, 48]}, ask).shapes["a"] == (1, 48)


def test_integers_stay_where_an_embedding_knows_them_and_scalars_come_from_the_graph() -> None:
    tokens = Signature(
        inputs=(
            Tensor(name="ids", dtype="int64", shape=(-1, 8)),
            Tensor(name="sr", dtype="int64", shape=(), batch_axis=None),
        )
    )

    def ask(request):
        assert request["ids"].max() < 10
        assert request["sr"] == 16000
        return {}

    found = plan(tokens, None, ask, constants={"sr": [8000, 16000]})
    assert (found.below, found.scalars) == (10, {"sr": 16000})


@pytest.mark.parametrize("said", [{"z": [1, 3]}, {"x": [1, 4]}, {"x": [3]}, {"x": [0, 3]}])
def test_shapes_that_do_not_fit_are_refused(said) -> None:
    with pytest.raises(Unprocessable) as refused:
        plan(BATCHED, said, lambda r: {})
    assert refused.value.code == "bad_shapes"


def test_a_model_that_runs_on_nothing_says_what_it_needs() -> None:
    def ask(request):
        raise RuntimeError("never")

    with pytest.raises(Unprocessable, match="never"):
        plan(BATCHED, None, ask)


def test_export_keeps_the_batch_dynamic_and_counts_agree(tmp_path) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        module[0].weight[0] = 0
    signature = Signature(inputs=(Tensor(name="x", shape=(-1, 2, 4, 4)),), outputs=(Tensor(name="y", shape=(-1, 3)),))
    path = tmp_path / "m.onnx"
    assert to_onnx(module, signature, (torch.randn(2, 2, 4, 4),), path) >= 17
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    x = torch.randn(5, 2, 4, 4)
    assert [o.name for o in session.get_outputs()] == ["y"]
    assert np.allclose(session.run(None, {"x": x.numpy()})[0], module(x).detach(), atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]
    assert str(tmp_path.parent) not in path.read_bytes().decode("latin1")
    assert b"site-packages" not in path.read_bytes()
    assert onnx_sparsity(path) == {"zeros": 18, "weights": 120, "sparsity": 0.15}
    assert onnx_parameters(path) == 127
    assert onnx_macs(path) == macs(module, (torch.randn(1, 2, 4, 4),)) == 4 * 4 * 18 + 48
    assert settle(path, tmp_path / "s.onnx") == 0


def test_what_cannot_be_exported_says_why(tmp_path) -> None:
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    with pytest.raises(Unprocessable) as refused:
        to_onnx(
            Odd(),
            Signature(inputs=(Tensor(name="x", shape=(3, 3), batch_axis=None),)),
            (torch.eye(3),),
            tmp_path / "m.onnx",
        )
    assert refused.value.code == "not_exportable"
