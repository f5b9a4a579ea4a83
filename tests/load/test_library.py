"""Networks of libraries: by name, from folders of Hugging Face, and what is refused of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import BadArchitecture, BadCheckpoint, Problem
from load.test_upload import load, packed
from workers import net
from workers.load import library

transformers = pytest.importorskip("transformers")
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def resnet() -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label={0: "cat", 1: "dog", 2: "owl"}
    )
    return transformers.ResNetForImageClassification(config).eval()


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, num_labels=3, **TINY)
    return transformers.BertForSequenceClassification(config).eval()


def folder_of(model: Any, folder: Path, **files: Any) -> dict[str, bytes]:
    model.save_pretrained(folder / "saved")
    for name, content in files.items():
        (folder / "saved" / f"{name}.json").write_text(json.dumps(content))
    found = {f"model/{p.name}": p.read_bytes() for p in (folder / "saved").iterdir()}
    shutil.rmtree(folder / "saved")
    return found


def make_empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def changed(files: dict[str, bytes], **config: Any) -> dict[str, bytes]:
    known = json.loads(files["model/config.json"])
    known |= config
    return files | {"model/config.json": json.dumps({k: v for k, v in known.items() if v is not None}).encode()}


def rebuilt(folder: Path) -> torch.nn.Module:
    return net.rebuild(
        json.loads((folder / "out" / net.ARCHITECTURE).read_text()), net.read_weights(folder / "out" / net.WEIGHTS)
    )


def test_a_folder_for_images(tmp_path: Path) -> None:
    model = resnet()
    processor = {"size": {"height": 40, "width": 48}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    found = load(tmp_path, packed(folder_of(model, tmp_path, preprocessor_config=processor), "tar"))
    assert [(t["name"], t["shape"]) for t in found["signature"]["inputs"]] == [("pixel_values", (-1, 3, 40, 48))]
    assert [(t["name"], t["shape"]) for t in found["signature"]["outputs"]] == [("logits", (-1, 3))]
    assert (found["task"], found["labels"]) == ("image-classification", ["cat", "dog", "owl"])
    assert found["preprocess"]["resize"] == [40, 48]
    assert found["form"] == "graph"
    x = torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(tmp_path)(x), model(x).logits)


def test_a_folder_for_text_in_shards(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    files = {p.name: p.read_bytes() for p in (tmp_path / "saved").iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) > 1
    found = load(tmp_path, packed(files))
    assert [(t["name"], t["dtype"], t["shape"]) for t in found["signature"]["inputs"]] == [
        ("input_ids", "int64", (-1, -1)),
        ("attention_mask", "int64", (-1, -1)),
    ]
    assert found["task"] == "text-classification"
    ids, mask = torch.randint(0, 50, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    module = rebuilt(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(module(ids, mask), model(input_ids=ids, attention_mask=mask).logits)
    module.train()
    module(ids, mask).sum().backward()


def test_weights_with_a_library_architecture(tmp_path: Path) -> None:
    model = bert()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    architecture = {
        "library": "transformers",
        "name": "BertForSequenceClassification",
        "kwargs": {"vocab_size": 50, "num_labels": 3, **TINY},
    }
    found = load(tmp_path, tmp_path / "a.pt", architecture=architecture)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    wrong = architecture | {"kwargs": {**architecture["kwargs"], "num_labels": 4}}
    with pytest.raises(BadArchitecture, match=r"classifier.weight: \[3, 16\] in the checkpoint, \[4, 16\]"):
        load(tmp_path, tmp_path / "a.pt", architecture=wrong)


def test_no_code_from_the_folder_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\nclass Evil: pass\n".encode()
    files = folder_of(resnet(), tmp_path) | {"model/modeling_evil.py": code}
    own = {"AutoModelForImageClassification": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    found = load(tmp_path, packed(changed(files, auto_map=own)))
    assert any("auto_map was ignored" in note for note in found["notes"])
    with pytest.raises(BadArchitecture, match=r"'EvilModel'.*auto_map.*not run"):
        load(tmp_path, packed(changed(files, auto_map=own, architectures=["EvilModel"])))
    assert not canary.exists()


def test_what_a_folder_may_not_be(tmp_path: Path) -> None:
    files = folder_of(resnet(), tmp_path)
    weights = files["model/model.safetensors"]
    bad: list[tuple[dict[str, bytes], str]] = [
        (changed(files, architectures=None), "does not say its architecture"),
        (changed(files, architectures=["PreTrainedModel"]), "no architecture 'PreTrainedModel'"),
        (changed(files, quantization_config={"quant_method": "gptq"}), "quantized"),
        (changed(files, hidden_sizes=[8, 32]), "do not fit|cannot load"),
        (changed(files, depths=[1, 2]), "missing"),
        (files | {"model/config.json": b"{"}, "no JSON"),
        (files | {"model/config.json": b"[" * 100_000}, "no JSON"),
        (files | {"model/model.safetensors": weights[:-100]}, "cannot load|incomplete"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "no safetensors, only pytorch_model.bin"),
    ]
    for content, said in bad:
        with pytest.raises(Problem, match=said) as caught:
            load(make_empty(tmp_path / "x"), packed(content))
        assert isinstance(caught.value, BadArchitecture | BadCheckpoint)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"library": "os", "name": "system"}, "not one of"),
    ({"library": "transformers", "name": "pipeline"}, "no architecture 'pipeline'"),
    ({"library": "transformers", "name": "BertModel", "kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
    ({"library": "transformers", "name": "BertModel", "kwargs": {"a": {"auto_map": {}}}}, r"kwargs.a.auto_map"),
    ({"library": "transformers", "name": "BertModel", "kwargs": {"_attn_implementation": "hub/x"}}, "_attn_impl"),
    ({"library": "transformers", "name": "BertModel", "kwargs": {"x": "https://evil"}}, "address"),
    (
        {"library": "transformers", "name": "BertModel", "kwargs": {"hidden_size": 12 * 2**14}},
        "numbers, the checkpoint",
    ),
    ({"library": "transformers", "name": "BertModel", "kwargs": {"hidden_size": "a"}}, "refuses"),
    ({"library": "transformers", "name": "BertModel", "kwargs": [1]}, "a library architecture is"),
    ({"library": "transformers", "name": ["BertModel"]}, "a library architecture is"),
]


@pytest.mark.parametrize(("architecture", "said"), REFUSED, ids=lambda v: str(v)[:50])
def test_refuses(architecture: dict[str, Any], said: str) -> None:
    with pytest.raises(BadArchitecture, match=said):
        library.build(architecture, 1000)


@pytest.mark.parametrize("name", [n for n in library.LIBRARIES if n not in library.installed()])
def test_a_missing_library_is_named(name: str) -> None:
    with pytest.raises(BadArchitecture, match=f"no {name}") as caught:
        library.build({"library": name, "name": "resnet18"}, 1000)
    assert caught.value.code == "library_missing"
    assert "export" in str(caught.value.hint)


def test_notes_do_not_say_where_a_library_lies(tmp_path: Path) -> None:
    found = load(tmp_path, packed(folder_of(bert(), tmp_path)))
    assert "site-packages" not in " ".join(found["notes"])


def test_a_folder_does_not_choose_the_kernels_of_attention(tmp_path: Path) -> None:
    files = changed(folder_of(bert(), tmp_path), attn_implementation="somebody/kernels")
    assert load(tmp_path, packed(files))["trainable"]
