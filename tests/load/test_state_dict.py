"""Weights in files of torch.save, of every age and wrapping; pickles that want to run something, and do not."""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import random
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import SimpleCNN
from torch import nn
from torch.nn.utils import prune

from app.errors import BadArchitecture, BadCheckpoint, Problem
from workers import net
from workers.load import sequential, state_dict, weights

STATE = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2))


def saved(content: Any, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


WRAPPED: dict[str, Any] = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "best_prec1": 91.7, "rng": torch.zeros(4)},
    "model": {"model": STATE, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": {"model_state_dict": STATE, "loss": 0.5},
    "net": {"net": STATE, "acc": 90},
    "list": {"epoch": 1, "state_dict": [STATE]},
    "nested": {"checkpoint": {"state_dict": STATE}},
    "parallel": {f"module.{k}": v for k, v in STATE.items()},
    "compiled": {f"_orig_mod.{k}": v for k, v in STATE.items()},
    "both": {"state_dict": {f"module._orig_mod.{k}": v for k, v in STATE.items()}},
    "entries": {**STATE, "epoch": 3, "names": ["a"]},
    "strangers": {"state_dict": STATE, "args": argparse.Namespace(lr=0.1), "path": Path("/x")},
    "parameters": {k: nn.Parameter(v) for k, v in STATE.items()},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_finds_the_weights(name: str, legacy: bool, tmp_path: Path) -> None:
    found = state_dict.read(saved(WRAPPED[name], tmp_path / "a.pt", legacy))
    assert list(found.state) == list(STATE)
    assert all(torch.equal(found.state[k], v) for k, v in STATE.items())
    assert bool(found.notes) == (name not in ("bare", "parameters"))


def test_pruning_masks_are_applied(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    found = state_dict.read(saved(layer.state_dict(), tmp_path / "a.pt"))
    assert torch.equal(found.state["weight"], layer.weight.detach())
    assert set(found.state) == {"weight", "bias"}


NOTHING: dict[str, Any] = {
    "empty": {},
    "numbers": {"epoch": 1},
    "tensor": torch.ones(3),
    "list": [1, 2],
    "two": {"generator": dict(STATE), "discriminator": dict(STATE)},
    "sparse": {"a": torch.eye(3).to_sparse()},
}


@pytest.mark.parametrize("name", NOTHING)
def test_says_what_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        state_dict.read(saved(NOTHING[name], tmp_path / "a.pt"))
    assert caught.value.hint
    if name == "two":
        assert "'generator', 'discriminator'" in caught.value.detail


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1_000_000, 1_000_000)
    with pytest.raises(BadCheckpoint, match="claim"):
        state_dict.read(saved({"a": huge}, tmp_path / "a.pt"))


class _Runs:
    """A pickle that runs what it likes when it is loaded the ordinary way."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "system": lambda canary: _Runs(os.system, f"touch {canary}"),
    "exec": lambda canary: _Runs(exec, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
    "eval": lambda canary: _Runs(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
    "open": lambda canary: _Runs(open, str(canary), "w"),
    "copy": lambda canary: _Runs(shutil.copy, "/etc/hostname", str(canary)),
    "getattr": lambda canary: _Runs(getattr, "text", "upper"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_program_is_refused_and_never_runs(name: str, legacy: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved({"state_dict": STATE, "extra": HOSTILE[name](canary)}, tmp_path / "a.pt", legacy)
    torch.load(path, weights_only=False)  # it would have
    gc.collect()  # the file that `open` left open warns here, and not in another test
    made, _ = canary.exists(), canary.unlink(missing_ok=True)
    with pytest.raises(BadCheckpoint, match="is a program"):
        state_dict.read(path)
    assert made == (name != "getattr")
    assert not canary.exists()


def test_unknown_callables_do_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved({"state_dict": STATE, "extra": _Runs(Path.touch, canary)}, tmp_path / "a.pt")
    with pytest.raises(BadCheckpoint):
        state_dict.read(path)
    path = saved({"state_dict": STATE, "extra": _Runs(argparse.FileType, "w")}, tmp_path / "a.pt")
    assert list(state_dict.read(path).state) == list(STATE)
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_and_random_files(share: float, legacy: bool, tmp_path: Path) -> None:
    whole = saved(STATE, tmp_path / "a.pt", legacy).read_bytes()
    path = tmp_path / "b.pt"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadCheckpoint):
        state_dict.read(path)
    path.write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(BadCheckpoint):
        state_dict.read(path)
    path.write_bytes(pickle.dumps(STATE, protocol=4))
    with pytest.raises(BadCheckpoint):
        state_dict.read(path)


def stack() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.PReLU(),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.Unflatten(1, (2, 4)),
    ).eval()


def test_a_whole_pickled_stack_is_rebuilt_from_its_data(tmp_path: Path) -> None:
    model = stack()
    found = state_dict.read(saved(model, tmp_path / "a.pt"))
    assert found.module is not None
    layers = sequential.from_pickled(found.module)
    assert layers is not None
    module = net.rebuild({"graph": sequential.expand(layers)}, found.state)
    x = torch.randn(3, 1, 6, 6)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))
    assert set(module.state_dict()) == set(model.state_dict())


def test_a_pickled_stack_with_code_on_it_is_refused(tmp_path: Path) -> None:
    shadowed = nn.Sequential(nn.Linear(3, 3))
    vars(shadowed[0])["forward"] = nn.Sigmoid()
    module = state_dict.read(saved(shadowed, tmp_path / "a.pt")).module
    assert module is not None
    with pytest.raises(BadCheckpoint, match="forward replaced"):
        sequential.from_pickled(module)


def test_a_whole_pickled_class_gives_its_tensors_only(tmp_path: Path) -> None:
    model = SimpleCNN()
    found = state_dict.read(saved(model, tmp_path / "a.pt"))
    assert {k: v.shape for k, v in found.state.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert found.module is not None
    assert found.module.path.endswith("networks.SimpleCNN")
    assert sequential.from_pickled(found.module) is None
    old = saved(model, tmp_path / "b.pt", legacy=True)
    with pytest.raises(BadCheckpoint, match="old release") as caught:
        state_dict.read(old)
    assert "state_dict" in str(caught.value.hint)


def test_a_mismatch_names_keys_and_shapes() -> None:
    module = net.graph.build(sequential.expand([{"type": "Linear", "name": "fc", "in_features": 3, "out_features": 2}]))
    with pytest.raises(BadArchitecture) as caught:
        weights.fit(module, {"fc.weight": torch.ones(2, 4), "head.bias": torch.ones(2)})
    assert "1 missing in the checkpoint (fc.bias)" in caught.value.detail
    assert "1 unknown to the architecture (head.bias)" in caught.value.detail
    assert "fc.weight: [2, 4] in the checkpoint, [2, 3] in the architecture" in caught.value.detail
    assert "\"name\": 'head'" in str(caught.value.hint)


def test_counters_may_be_missing_or_too_many() -> None:
    norm = [{"type": "BatchNorm1d", "num_features": 2}]
    state = {k: v for k, v in nn.Sequential(nn.BatchNorm1d(2)).state_dict().items() if "num_batches" not in k}
    module = net.rebuild({"graph": sequential.expand(norm)}, state)
    assert module.state_dict()["0.num_batches_tracked"] == 0
    notes = weights.fit(module, state | {"1.num_batches_tracked": torch.tensor(3)})
    assert "ignored" in notes[0]


def test_half_precision_becomes_float32_and_nan_is_refused() -> None:
    layer = [{"type": "Linear", "in_features": 2, "out_features": 1}]
    state = {"0.weight": torch.ones(1, 2).half(), "0.bias": torch.ones(1).double()}
    module = net.rebuild({"graph": sequential.expand(layer)}, state)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    with pytest.raises(BadCheckpoint, match=r"'0.bias' holds 1 values that are NaN"):
        weights.check_numbers({"0.bias": torch.tensor([1.0, float("nan")])})


def test_one_prefix_too_many_or_too_few() -> None:
    notes: list[str] = []
    assert list(state_dict.align({"model.a": torch.ones(1)}, {"a"}, notes)) == ["a"]
    assert notes == ["stripped the prefix 'model.'"]
    assert list(state_dict.align({"a": torch.ones(1)}, {"model.a"}, notes)) == ["model.a"]
    assert list(state_dict.align({"x": torch.ones(1)}, {"a"}, notes)) == ["x"]


SEQUENTIAL: list[tuple[Any, str]] = [
    ("Linear", "list of 1"),
    ([], "list of 1"),
    ([1], "layer 0"),
    ([{"in_features": 1}], "layer 0"),
    ([{"type": "Linaer", "in_features": 1, "out_features": 1}], "'Linaer'"),
    ([{"type": "Linear", "in_features": 1}], "out_features"),
    ([{"type": "ReLU", "name": "a b"}], "dotted"),
    ([{"type": "ReLU", "name": "a"}, {"type": "ReLU", "name": "a"}], "two layers"),
    ([{"type": "MultiheadAttention", "embed_dim": 4, "num_heads": 1}], "several inputs"),
]


@pytest.mark.parametrize(("layers", "said"), SEQUENTIAL)
def test_sequential_refuses(layers: Any, said: str) -> None:
    with pytest.raises(Problem, match=said):
        net.graph.build(sequential.expand(layers))


def test_a_zip_with_a_huge_pickle(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(BadCheckpoint, match="no checkpoint"):
        state_dict.read(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_protocol_that_torch_does_not_read_is_told(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "new.pt"
    torch.save(STATE, path, pickle_protocol=4, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadCheckpoint) as caught:
        state_dict.read(path)
    assert "protocol" in caught.value.detail
    assert "issue" not in caught.value.detail


def test_a_text_that_looks_like_a_pickle_is_refused_without_warnings(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    path.write_bytes(b"S'\\W'\n.")
    with pytest.raises(BadCheckpoint):
        state_dict.read(path)
