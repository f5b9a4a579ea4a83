"""Whole heads that are really gone: from every way in which attention is written, and never a part of one."""

from __future__ import annotations

import copy
import random
import warnings

import attention_networks as nets
import numpy as np
import onnxruntime
import pytest
import torch
from enginesmith import graph as form
from torch import fx, nn

from app.domain.records import Signature, Tensor
from workers.load import graph as rebuilt
from workers.nn.channels import Thinned, thin
from workers.nn.export import to_onnx

JOINED = ("timm", "index", "chunk", "split", "inside", "module")
APART = ("view", "size", "minus", "divided", "einsum")
ROW = (torch.randn(2, 5, 6),)
TOKENS = (torch.randint(0, 20, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3]))


def traced(module: nn.Module) -> fx.GraphModule:
    """With biases that are not zero, so that a mix-up of heads shows."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return fx.symbolic_trace(module.eval())


def transformer(attention, **how) -> fx.GraphModule:
    torch.manual_seed(0)
    return traced(nets.Transformer(attention, **how))


def stored(found: Thinned) -> fx.GraphModule:
    """What comes back when it is saved as data and weights, and loaded."""
    data = form.describe(found.module)
    again = rebuilt.build(data["graph"])
    again.load_state_dict(form.weights(found.module, data), strict=False, assign=True)
    return again.eval()


def without_heads(whole: fx.GraphModule, found: Thinned, dim: int, qkv="qkv", proj="proj") -> nn.Module:
    """The whole network in which every head that is not found in what is left adds nothing: made from the weights."""
    masked = copy.deepcopy(whole)
    for name in found.heads:
        kept = found.module.get_submodule(f"{name}.{proj}").weight.T
        weight = masked.get_submodule(f"{name}.{proj}").weight
        gone = [not any(torch.equal(column, k) for k in kept) for column in weight.T]
        assert all(len(set(gone[i : i + dim])) == 1 for i in range(0, len(gone), dim))
        with torch.no_grad():
            weight[:, gone] = 0
    return masked


@pytest.mark.parametrize("how", JOINED)
def test_heads_of_one_qkv_layer_go_as_a_whole(how) -> None:
    whole = transformer(lambda width: nets.Joined(width, 4, 4, how))
    blocks = [f"blocks.{n}.attn" for n in range(2)]
    found = thin(whole, ROW, 0.5, layers=[f"{b}.qkv" for b in blocks])
    assert found.refused is None
    assert found.heads == {b: {"before": 4, "after": 2} for b in blocks}
    assert {n: found.after[n] for n in found.before if found.before[n] != found.after[n]} == {
        f"{b}.qkv": 24 for b in blocks
    }
    assert "equal" in found.check
    wanted = without_heads(whole, found, 4)
    again = stored(found)
    for rows in (1, 3):
        x = torch.randn(rows, 5, 6)
        assert torch.allclose(wanted(x), found.module(x), atol=1e-5)
        assert torch.equal(again(x), found.module(x))
    found.module.train()
    found.module(torch.randn(4, 5, 6)).sum().backward()


@pytest.mark.parametrize("how", APART)
def test_heads_of_three_layers_go_together(how) -> None:
    whole = transformer(lambda width: nets.Apart(width, 4, 4, how))
    found = thin(whole, ROW, 0.5)
    assert [h["after"] for h in found.heads.values()] == [2, 2]
    for block in found.heads:
        assert {found.after[f"{block}.{n}"] for n in "qkv"} == {8}
        assert found.after[f"{block}.proj"] == 16
    assert found.after["blocks.1.fc1"] == 12
    assert "equal" in found.check
    assert torch.equal(stored(found)(*ROW), found.module(*ROW))


@pytest.mark.parametrize("how", ["view", "minus"])
def test_heads_that_share_keys_and_values_go_with_them(how) -> None:
    found = thin(transformer(lambda width: nets.Apart(width, 4, 4, how, shared=2)), ROW, 0.5)
    assert found.heads["blocks.0.attn"] == {"before": 4, "after": 2}
    assert (found.after["blocks.0.attn.q"], found.after["blocks.0.attn.k"]) == (8, 4)
    assert "equal" in found.check


def test_what_has_no_heads_to_choose_from_is_left_alone_and_says_why() -> None:
    for attention in (lambda w: nets.Joined(w, 1, 16, "chunk"), lambda w: nets.Apart(w, 4, 4, shared=4)):
        found = thin(transformer(attention), ROW, 0.5)
        assert {n for n in found.before if found.before[n] != found.after[n]} == {"blocks.0.fc1", "blocks.1.fc1"}
        assert any("head by head" in why for n, why in found.left_alone.items() if ".attn." in n)


def test_a_table_with_a_column_for_every_head_keeps_the_heads() -> None:
    found = thin(transformer(lambda width: nets.Biased(width, 4, 4)), ROW, 0.5)
    assert all(h["before"] == h["after"] for h in found.heads.values())
    assert found.after["blocks.0.attn.qkv"] == 48
    assert "add" in found.left_alone["blocks.0.attn.qkv"]
    assert found.after["blocks.0.fc1"] == 12
    assert "equal" in found.check


def test_the_width_that_the_blocks_add_to_stays() -> None:
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)
            self.attn = nets.Joined(16, 4, 4)

        def forward(self, x):
            x = self.embed(x)
            return self.head(x + self.attn(self.norm(x)))

    found = thin(traced(Plain()), ROW, 0.5)
    assert {n for n in found.before if found.before[n] != found.after[n]} == {"attn.qkv"}
    assert "normalisation norm" in found.left_alone["embed"]
    assert "equal" in found.check


def test_any_number_of_heads_of_any_size() -> None:
    draw = random.Random(0)
    for _ in range(12):
        heads, dim, amount = draw.randint(1, 8), draw.choice([1, 2, 3, 8]), draw.choice([0.1, 0.3, 0.5, 0.75, 0.99])
        how = draw.choice([h for h in (*JOINED, *APART) if h not in ("timm", "divided")])
        kind = nets.Joined if how in JOINED else nets.Apart
        scope = draw.choice(["layer", "global"])
        whole = transformer(lambda w: kind(w, heads, dim, how), depth=1)  # noqa: B023
        found = thin(whole, ROW, amount, scope=scope, importance=draw.choice(["magnitude", "random"]), seed=1)
        assert found.refused is None, (how, heads, dim, amount)
        for block in found.heads.values():
            assert block["before"] == heads
            assert 1 <= block["after"] <= heads
            if scope == "layer":
                assert block["after"] == max(1, heads - int(amount * heads + 1e-9))
        assert "equal" in (found.check or "equal")
        assert torch.isfinite(found.module(*ROW)).all()


def test_heads_are_counted_in_multiples_and_the_least_important_go_first() -> None:
    whole = transformer(lambda width: nets.Joined(width, 6, 4, "chunk"), depth=1)
    assert thin(whole, ROW, 0.5, round_to=4).heads["blocks.0.attn"]["after"] == 4
    qkv, proj = (whole.get_submodule(f"blocks.0.attn.{n}").weight for n in ("qkv", "proj"))
    with torch.no_grad():
        qkv.view(3, 6, 4, -1)[:, 2] *= 1e-3
        proj.view(-1, 6, 4)[:, 2] *= 1e-3
    kept = thin(whole, ROW, 0.2).module.get_submodule("blocks.0.attn.proj").weight
    assert torch.equal(kept, torch.cat([proj[:, :8], proj[:, 12:]], 1))
    saliency = {f"blocks.0.attn.{n}.weight": torch.ones_like(w) for n, w in (("qkv", qkv), ("proj", proj))}
    saliency["blocks.0.attn.proj.weight"][:, 20:] = 0
    kept = thin(whole, ROW, 0.2, saliency=saliency).module.get_submodule("blocks.0.attn.proj").weight
    assert torch.equal(kept, proj[:, :20])


def test_a_network_with_heads_gone_loses_more() -> None:
    whole = transformer(lambda width: nets.Joined(width, 8, 4, "chunk"))
    once = thin(whole, ROW, 0.5)
    twice = thin(stored(once), ROW, 0.5)
    assert twice.heads["blocks.1.attn"] == {"before": 4, "after": 2}
    assert "equal" in twice.check


@pytest.mark.parametrize(
    "how",
    [
        {"batch_first": True},
        {"batch_first": False, "activation": "gelu", "norm_first": True},
        {"batch_first": True, "dropout": 0.0, "causal": True, "bias": False},
    ],
    ids=str,
)
def test_torchs_own_encoder_is_written_out_and_loses_heads(how) -> None:
    torch.manual_seed(0)
    whole = traced(nets.Encoder(**how))
    found = thin(whole, TOKENS, 0.5)
    assert found.refused is None
    assert found.heads == {f"encoder.layers.{n}.self_attn": {"before": 4, "after": 2} for n in range(2)}
    assert found.after["encoder.layers.0.linear1"] == 12
    assert "equal" in found.check
    assert torch.equal(stored(found)(*TOKENS), found.module(*TOKENS))
    unchanged = thin(whole, TOKENS, 0.01)
    assert unchanged.module is whole
    found.module.train()
    found.module(*TOKENS).sum().backward()
    assert all(p.grad is not None for p in found.module.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_attention_between_two_and_decoders(dropout) -> None:
    torch.manual_seed(0)
    found = thin(traced(nets.Between(dropout)), (torch.randn(2, 5, 6),), 0.5)
    assert {n: h["after"] for n, h in found.heads.items()} == {
        "attend": 2,
        "decode.self_attn": 2,
        "decode.multihead_attn": 2,
    }
    assert "equal" in found.check
    form.describe(found.module)


@pytest.mark.parametrize("kind", ["joined", pytest.param("encoder", marks=pytest.mark.slow)])
def test_exported_with_heads_gone_onnx_runtime_answers_the_same(kind, tmp_path) -> None:
    if kind == "joined":
        whole, example, dtype = transformer(lambda width: nets.Joined(width, 4, 4, "timm")), ROW, "float32"
    else:
        whole, example, dtype = traced(nets.Encoder(batch_first=True)), TOKENS, "int64"
    found = thin(whole, example, 0.5)
    names = ("x",) if kind == "joined" else ("ids", "mask")
    inputs = tuple(Tensor(name=n, dtype=dtype, shape=(-1, *t.shape[1:])) for n, t in zip(names, example, strict=True))
    signature = Signature(inputs=inputs, outputs=(Tensor(name="logits", shape=(-1, found.module(*example).shape[1])),))
    to_onnx(stored(found), signature, example, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        given = tuple(torch.cat([t, t])[:rows] for t in example)
        (answer,) = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
        assert np.abs(answer - found.module(*given).detach().numpy()).max() < 1e-4


def test_a_transformers_model_is_followed_and_loses_heads() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertForSequenceClassification

        from workers.load.library import Plain, input_names

        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=20,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=24,
                max_position_embeddings=16,
            )
        )
    whole = Plain(model.eval(), input_names(model))
    found = thin(whole, TOKENS, 0.5)
    assert found.refused is None
    block = "model.bert.encoder.layer.0.attention.self"
    assert found.heads == {block: {"before": 4, "after": 2}}
    assert found.after["model.bert.encoder.layer.0.intermediate.dense"] == 12
    assert "equal" in found.check
    again = stored(found)
    for rows, length in ((1, 7), (3, 4)):  # neither of them the example's
        ids, mask = torch.randint(0, 20, (rows, length)), torch.ones(rows, length, dtype=torch.int64)
        mask[:, 3:] = 0
        assert torch.equal(again(ids, mask), found.module(ids, mask))
        assert found.module(ids, mask).shape == whole(ids, mask).shape
