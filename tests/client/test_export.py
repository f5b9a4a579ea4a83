"""`export`: networks of many kinds travel as data and come back bit for bit; the rest is named with its line."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from enginesmith import Exported, NotExpressible, export
from enginesmith.graph import describe
from enginesmith.shapes import flatten
from networks import NETWORKS, Mlp, SimpleCNN, TextNet, Tied, TwoInputs
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from workers import net


def rebuilt(exported: Exported) -> nn.Module:
    """What a worker makes of it, after a trip through JSON."""
    return net.rebuild(json.loads(json.dumps(exported.architecture, allow_nan=False)), load(exported.weights))


@pytest.mark.parametrize("name", NETWORKS)
def test_comes_back_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    kind, example = NETWORKS[name]
    model = kind().eval()
    exported = export(model, example)
    module = rebuilt(exported)
    larger = tuple(torch.cat([x, x, x]) for x in example)
    for inputs in (example, larger):
        with torch.no_grad():
            wanted, found = flatten(model(*inputs))[0], flatten(module(*inputs))[0]
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert describe(module) == exported.architecture
    assert export(model, example) == exported


@pytest.mark.parametrize("name", NETWORKS)
def test_leaves_the_owners_model_as_it_was(name: str) -> None:
    kind, example = NETWORKS[name]
    model = kind()
    model.train()
    next(model.children()).eval()
    before = {path: (m.training, sorted(vars(m))) for path, m in model.named_modules()}
    inputs = tuple(x.clone() for x in example)
    export(model, example)
    assert {path: (m.training, sorted(vars(m))) for path, m in model.named_modules()} == before
    assert all(torch.equal(a, b) for a, b in zip(inputs, example, strict=True))


def test_signature_names_inputs_and_outputs() -> None:
    found = export(SimpleCNN(), torch.randn(1, 1, 28, 28)).signature
    assert found == {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 1, 28, 28], "batch_axis": 0}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 10], "batch_axis": 0}],
    }
    two = export(TwoInputs(), (torch.randn(2, 4), torch.randn(2, 3)), names=["a", "b"]).signature
    assert [t["name"] for t in two["inputs"]] == ["a", "b"]
    assert [(t["name"], t["shape"]) for t in two["outputs"]] == [("output", [-1, 8]), ("output_1", [-1])]
    fixed = export(SimpleCNN(), torch.randn(4, 1, 28, 28), dynamic={}).signature
    assert fixed["inputs"][0] == {"name": "x", "dtype": "float32", "shape": [4, 1, 28, 28], "batch_axis": None}
    text = export(TextNet(), torch.zeros(2, 8, dtype=torch.int64), dynamic={"tokens": [0, 1]}).signature
    assert text["inputs"][0]["dtype"] == "int64"
    assert text["inputs"][0]["shape"] == [-1, -1]


def test_inputs_by_name_and_constants() -> None:
    model = TwoInputs().eval()
    given = {"right": torch.randn(2, 3), "left": torch.randn(2, 4), "scale": 3.0}
    exported = export(model, given)
    assert [t["name"] for t in exported.signature["inputs"]] == ["left", "right"]
    with torch.no_grad():
        assert torch.equal(rebuilt(exported)(given["left"], given["right"])[0], model(**given)[0])


def test_functional_dropout_follows_training_mode() -> None:
    model = Mlp()
    module = rebuilt(export(model, torch.randn(2, 12)))
    x = torch.randn(64, 12)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    assert [type(m) for m in module.children()].count(nn.Dropout) == 1


def test_tied_weights_stay_tied() -> None:
    exported = export(Tied(), torch.zeros(1, 3, dtype=torch.int64))
    assert exported.architecture["graph"]["tied"] == {"out.weight": "embed.weight"}
    assert set(exported.state_dict) == {"embed.weight"}
    module = rebuilt(exported)
    assert module.get_parameter("out.weight") is module.get_parameter("embed.weight")


def test_wrappers_are_taken_off_and_precision_is_float32() -> None:
    model = SimpleCNN().eval()
    x = torch.randn(2, 1, 28, 28)
    assert export(nn.DataParallel(model), x).architecture == export(model, x).architecture
    half = export(SimpleCNN().double(), x.double())
    assert any("float32" in note for note in half.notes)
    assert half.state_dict["fc1.weight"].dtype == torch.float32


def test_shape_decisions_are_noted() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(len(x.shape)):
                x = self.fc(x)
            assert x.shape[1] == 3
            half = int(x.shape[1] / 2)
            return x[:, half:]

    exported = export(Picky(), torch.randn(2, 3))
    assert any("test_export.py" in note and "x.shape[1] == 3" in note for note in exported.notes)
    assert len([n for n in exported.architecture["graph"]["nodes"] if n["op"] == "call_module"]) == 2


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Bad(nn.Module):
    def __init__(self, step: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))
        self.step = step

    def forward(self, x: Tensor) -> Any:
        return self.step(self, self.fc(x))


def _branch(m: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 0:  # the branch
        return x
    return -x


def _loop(m: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in x])  # the loop


def _batch_size(m: nn.Module, x: Tensor) -> Tensor:
    if x.shape[0] > 3:  # the batch size
        return x
    return -x


def _keeps_state(m: Any, x: Tensor) -> Tensor:
    m.last = x * 2  # the state
    return x


def _counts(m: Any, x: Tensor) -> Tensor:
    m.seen += 1  # the counter
    return x + m.seen


REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str, str]] = {
    "branch": (_branch, "control flow", "# the branch"),
    "loop": (_loop, "loop", "# the loop"),
    "batch_size": (_batch_size, "the batch", "# the batch size"),
    "state": (_keeps_state, "self.last", "# the state"),
    "counter": (_counts, "self.seen", "# the counter"),
    "autograd": (lambda m, x: _Sign.apply(x), "autograd", "_Sign.apply(x)"),
    "item": (lambda m, x: x * x.max().item(), "item", "x.max().item()"),
    "numpy": (lambda m, x: torch.from_numpy(x.numpy()), "where only tensors flow", "x.numpy()"),
    "random": (lambda m, x: x + torch.rand(4), "torch.rand", "torch.rand(4)"),
    "random_like": (lambda m, x: x + torch.randn_like(x), "randn_like", "torch.randn_like(x)"),
    "function": (lambda m, x: torch.linalg.svd(x)[0], "svd", "torch.linalg.svd(x)"),
    "dropout": (lambda m, x: functional.dropout(x, 0.5), "dropout", "functional.dropout(x, 0.5)"),
    "float": (lambda m, x: x * float(x.sum()), "number", "float(x.sum())"),
    "string": (lambda m, x: "text", "return tensors", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_and_names_operation_and_line(name: str) -> None:
    step, said, line = REFUSED[name]
    model = _Bad(step)
    with pytest.raises(NotExpressible) as caught:
        export(model, torch.randn(2, 4))
    assert said in caught.value.detail
    if line:
        assert caught.value.line is not None
        assert "test_export.py:" in caught.value.line
        assert line in caught.value.line
    # And everything that was patched to see it is as it was.
    assert not isinstance(torch.arange(3), torch.fx.Proxy)
    assert torch.rand(2).shape == (2,)
    assert _Sign.apply(torch.ones(2)).shape == (2,)
    assert not any(isinstance(v, torch.fx.Proxy) for v in vars(model).values())


def test_refuses_layers_that_carry_code() -> None:
    hooked = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)))
    with pytest.raises(NotExpressible, match=r"'0'.*hooks"):
        export(hooked, torch.randn(2, 4))
    shadowed = nn.Sequential(nn.Linear(4, 4))
    shadowed[0].forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(NotExpressible, match="forward was replaced"):
        export(shadowed, torch.randn(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(NotExpressible, match="TorchScript"):
        export(script, torch.randn(2, 4))


def test_refuses_a_size_taken_from_the_example() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).view(3, 2)

    with pytest.raises(NotExpressible, match="twice the example's batch") as caught:
        export(Fixed(), torch.randn(3, 4))
    assert "dynamic={}" in str(caught.value.hint)
    assert export(Fixed(), torch.randn(3, 4), dynamic={}).signature["outputs"][0]["shape"] == [3, 2]


def test_wrong_examples() -> None:
    with pytest.raises(NotExpressible, match="does not take this example"):
        export(SimpleCNN(), (torch.randn(1, 1, 28, 28), torch.randn(1)))
    with pytest.raises(NotExpressible, match="no tensor"):
        export(SimpleCNN(), "text")
    with pytest.raises(NotExpressible, match="itself fails"):
        export(SimpleCNN(), torch.randn(1, 3, 28, 28))


def test_golden_file() -> None:
    """The graph form on the wire: a change of it breaks clients of the last release, and must be a new version."""
    torch.manual_seed(0)
    found = export(SimpleCNN(), torch.zeros(1, 1, 28, 28)).architecture
    golden = Path(__file__).parents[1] / "golden" / "simple_cnn.json"
    assert json.loads(golden.read_text()) == found


def test_importing_the_client_does_not_import_torch() -> None:
    code = "import sys, enginesmith; enginesmith.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
