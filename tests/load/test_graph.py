"""The graph form: what is hostile or broken is refused by name, never with KeyError, and never run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from enginesmith import allowed
from enginesmith.graph import describe
from torch import nn

from app.errors import BadArchitecture
from workers.load import graph, weights
from workers.load.schema import GraphData

GOLDEN = Path(__file__).parents[1] / "golden"


def network() -> dict[str, Any]:
    """Linear(4, 3), relu, + the constant tensor `shift`."""
    return {
        "version": 1,
        "modules": {"fc": {"type": "Linear", "kwargs": {"in_features": 4, "out_features": 3, "bias": True}}},
        "tensors": {"shift": {"kind": "buffer", "shape": [3], "dtype": "float32"}},
        "nodes": [
            {"op": "placeholder", "name": "x", "target": "x", "args": [], "kwargs": {}},
            {"op": "call_module", "name": "fc", "target": "fc", "args": [{"$node": "x"}], "kwargs": {}},
            {
                "op": "call_function",
                "name": "relu",
                "target": "torch.nn.functional.relu",
                "args": [{"$node": "fc"}],
                "kwargs": {"inplace": False},
            },
            {"op": "get_attr", "name": "shift", "target": "shift", "args": [], "kwargs": {}},
            {
                "op": "call_method",
                "name": "add",
                "target": "add",
                "args": [{"$node": "relu"}, {"$node": "shift"}],
                "kwargs": {},
            },
            {"op": "output", "name": "output", "target": "output", "args": [{"$node": "add"}], "kwargs": {}},
        ],
    }


def test_builds_real_layers_that_train_and_evaluate() -> None:
    module = graph.build(network())
    state = {"fc.weight": torch.randn(3, 4), "fc.bias": torch.zeros(3), "shift": torch.ones(3)}
    assert weights.fit(module, state) == []
    assert type(module.fc) is nn.Linear
    x = torch.randn(2, 4)
    assert torch.equal(module(x), torch.relu(x @ state["fc.weight"].T) + 1)
    module(x).sum().backward()
    assert module.fc.weight.grad is not None
    assert describe(module) == {"graph": network()}


def test_building_allocates_nothing() -> None:
    data = network()
    data["modules"]["fc"]["kwargs"] |= {"in_features": 2**30, "out_features": 2**30}
    module = graph.build(data)
    assert module.fc.weight.is_meta
    with pytest.raises(BadArchitecture, match=r"fc.weight: \[3, 4\] in the checkpoint, \[1073741824, 1073741824\]"):
        weights.fit(module, {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3), "shift": torch.zeros(3)})


CANARY = "__import__('pathlib').Path('canary').touch()"
# Where → what is put there → what the refusal says.
BROKEN: list[tuple[list[Any], Any, str]] = [
    (["version"], 2, "version 2"),
    (["version"], "1", "version"),
    (["nodes"], [], "nodes"),
    (["nodes"], "x", "nodes"),
    (["nodes", 2, "target"], "os.system", "'relu'.*os.system.*not among"),
    (["nodes", 2, "target"], "torch.load", "'relu'.*torch.load"),
    (["nodes", 2, "target"], "builtins.eval", "not among"),
    (["nodes", 2, "target"], "torch.nn.functional.rleu", "'relu'"),
    (["nodes", 2, "target"], "torch.nn.functional.__builtins__", "not among"),
    (["nodes", 2, "target"], "builtins.getattr", "of a tensor only these"),
    (["nodes", 2, "args"], [{"$node": "add"}], "'relu'.*no earlier node is called 'add'"),
    (["nodes", 2, "args"], [{"$node": "nobody"}], "nobody"),
    (["nodes", 2, "args"], [{"$node": ["x"]}], "no earlier node"),
    (["nodes", 2, "args"], [{"$eval": CANARY}], r"\$eval"),
    (["nodes", 2, "args"], [{"a": 1, "b": 2}], "tagged value"),
    (["nodes", 2, "args"], [{"$dtype": "object"}], "object"),
    (["nodes", 2, "args"], [{"$slice": [1]}], "slice"),
    (["nodes", 2, "args"], [{"$dict": {CANARY: {"$node": "x"}}}], "identifier"),
    (["nodes", 2, "args"], [10**30], "64 bits"),
    (["nodes", 2, "kwargs"], {f"inplace={CANARY}, a": 1}, "identifier"),
    (["nodes", 2, "kwargs"], {"lambda": 1}, "identifier"),
    (["nodes", 2, "kwargs"], [1], "kwargs"),
    (["nodes", 2, "op"], "call_code", "op"),
    (["nodes", 2, "name"], f"a = {CANARY}", "identifier"),
    (["nodes", 2, "name"], "x", "two nodes"),
    (["nodes", 2, "extra"], 1, "extra"),
    (["nodes", 0, "target"], f"x={CANARY}", "identifier"),
    (["nodes", 0, "target"], "class", "identifier"),
    (["nodes", 0, "op"], "get_attr", "no tensor|holds a tensor|first node"),
    (["nodes", 1, "target"], "fc.weight", "no such path"),
    (["nodes", 1, "target"], "gone", "no such path"),
    (["nodes", 3, "target"], "__class__", "holds a tensor"),
    (["nodes", 3, "target"], "fc.forward", "no layer of the graph holds"),
    (["nodes", 3, "target"], "fc.__class__", "no layer|holds a tensor"),
    (["nodes", 4, "target"], "register_hook", "'add'.*register_hook"),
    (["nodes", 4, "target"], "__reduce__", "not among"),
    (["nodes", 4, "target"], "numpy", "not among"),
    (["nodes", 4, "args"], ["text"], "first argument"),
    (["nodes", 4, "args"], [], "first argument"),
    (
        ["nodes", 4],
        {"op": "call_method", "name": "add", "target": "add_", "args": [{"$node": "shift"}, 1]},
        "own tensor",
    ),
    (
        ["nodes", 4],
        {"op": "call_function", "name": "add", "target": "operator.add", "args": [{"$node": "relu"}], "kwargs": {}},
        "operator of the graph has too few arguments",
    ),
    (["nodes", 5, "args"], [1], "must come from a node"),
    (["nodes", 5, "op"], "call_function", "output|not among"),
    (["modules", "fc", "type"], "Conv9d", "Conv9d"),
    (["modules", "fc", "type"], "Module", "'Module'"),
    (["modules", "fc", "type"], "Sequential", "'Sequential'"),
    (["modules", "fc", "type"], "LazyLinear", "'LazyLinear'"),
    (["modules", "fc", "kwargs"], {"in_features": 4}, "'fc'.*Linear.*out_features"),
    (["modules", "fc", "kwargs"], {"in_features": -4, "out_features": 3}, "'fc'"),
    (["modules", "fc", "kwargs"], {"in_features": 10**15, "out_features": 3}, "larger than"),
    (["modules", "fc", "kwargs"], {"in_features": "4", "out_features": 3}, "'fc'"),
    (["modules", "fc", "kwargs"], {"in_features": 4, "out_features": 3, "device": "cpu"}, "'device'"),
    (
        ["modules", "fc"],
        {"type": "LSTM", "kwargs": {"input_size": 4, "hidden_size": 4, "num_layers": 10**6}},
        "num_layers",
    ),
    (["modules", "a b"], {"type": "ReLU", "kwargs": {}}, "'a b'"),
    (["modules", f'"]; {CANARY} #'], {"type": "ReLU", "kwargs": {}}, "dotted name"),
    (["modules", "fc.inner"], {"type": "ReLU", "kwargs": {}}, "inside the layer"),
    (["modules", "forward"], {"type": "ReLU", "kwargs": {}}, "keeps for itself"),
    (["modules", "_modules.x"], {"type": "ReLU", "kwargs": {}}, "_modules"),
    (["tensors", "shift", "shape"], [2**60], "shift"),
    (["tensors", "shift", "dtype"], "float99", "shift"),
    (["tensors", "shift", "kind"], "code", "kind"),
    (["tied"], {"fc.bias": "nothing"}, "cannot be one"),
    (["tied"], {"fc.bias": "fc.weight"}, "cannot be one"),
]


@pytest.mark.parametrize(
    ("path", "value", "said"), BROKEN, ids=lambda v: json.dumps(v)[:60] if isinstance(v, list) else ""
)
def test_refuses(path: list[Any], value: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = copy.deepcopy(network())
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BadArchitecture, match=said):
        graph.build(data)
    assert not (tmp_path / "canary").exists()


def test_refuses_what_is_no_graph_at_all() -> None:
    for data in (None, [], 1, "graph", {}, {"version": 1}, {"version": 1, "modules": [], "nodes": {}}):
        with pytest.raises(BadArchitecture):
            graph.build(data)


def test_deep_json_is_refused_without_recursion() -> None:
    deep: Any = {"$node": "x"}
    for _ in range(10_000):
        deep = [deep]
    data = network()
    data["nodes"][2]["args"] = [deep]
    with pytest.raises(BadArchitecture, match="nested deeper"):
        graph.build(data)


def test_an_output_in_the_middle_and_none_at_the_end() -> None:
    data = network()
    data["nodes"].insert(2, data["nodes"].pop())
    with pytest.raises(BadArchitecture, match="output"):
        graph.build(data)


def test_hint_names_what_was_meant() -> None:
    data = network()
    data["nodes"][2]["target"] = "torch.nn.functional.rellu"
    with pytest.raises(BadArchitecture) as caught:
        graph.build(data)
    assert "torch.nn.functional.relu" in str(caught.value.hint)


def test_every_layer_that_is_allowed_is_one() -> None:
    for name, kind in allowed.layers().items():
        assert issubclass(kind, nn.Module), name
        assert kind.__module__.startswith("torch.nn.modules."), name


def test_nothing_that_is_allowed_reaches_out() -> None:
    forbidden = {
        "load",
        "save",
        "eval",
        "exec",
        "open",
        "compile",
        "system",
        "from_file",
        "numpy",
        "backward",
        "apply_",
    }
    names = {n.rsplit(".", 1)[-1] for n in allowed.functions()} | set(allowed.METHODS)
    assert not names & forbidden
    assert not [n for n in names if n.startswith("__")]


def test_golden_schema() -> None:
    """The published form of a graph: a change of it is a change of the wire."""
    golden = json.loads((GOLDEN / "graph.schema.json").read_text())
    assert golden == GraphData.model_json_schema()


def test_golden_graph_builds() -> None:
    data = json.loads((GOLDEN / "simple_cnn.json").read_text())
    module = graph.build(data["graph"])
    assert describe(module) == data
    assert graph.inputs(data["graph"]) == ["x"]
