"""Every uploaded format through the sandbox's task: what is stored, and what is refused by name."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from enginesmith import export
from networks import NETWORKS, SimpleCNN
from safetensors.torch import save_file
from torch import nn

from app.domain.records import Signature, Tensor
from app.errors import BadArchitecture, BadCheckpoint, Problem, Unprocessable
from workers import net
from workers.load import upload

IMAGE = {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 1, 28, 28]}]}


def load(folder: Path, content: bytes | Path, **arguments: Any) -> dict[str, Any]:
    path = folder / "upload"
    path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = upload.load(
            folder, {"file": "upload", "max_files": 1000, "max_bytes": 2**28, "threads": 1, **arguments}
        )
    json.dumps(found, allow_nan=False)
    return found


def onnx_bytes() -> bytes:
    from load.test_onnx import model

    return model().SerializeToString()


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["simple_cnn", "vit", "text", "tied", "splits"])
def test_what_the_client_exports_is_stored(name: str, tmp_path: Path) -> None:
    kind, example = NETWORKS[name]
    model = kind().eval()
    exported = export(model, example)
    found = load(tmp_path, exported.weights, architecture=exported.architecture, signature=exported.signature)
    assert (found["format"], found["form"], found["trainable"], found["kind"]) == (
        "torch",
        "graph",
        True,
        "safetensors",
    )
    tensors = found["signature"]["outputs"]
    assert [(t["name"], list(t["shape"])) for t in tensors] == [
        (t["name"], t["shape"]) for t in exported.signature["outputs"]
    ]
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["architecture.json", "model.safetensors"]
    stored = json.loads((tmp_path / "out" / "architecture.json").read_text())
    module = net.rebuild(stored, net.read_weights(tmp_path / "out" / "model.safetensors"))
    with torch.no_grad():
        one, two = net.flatten(model(*example))[0], net.flatten(module(*example))[0]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_layer_sparsity_is_of_prunable_layers(tmp_path: Path) -> None:
    model = SimpleCNN()
    with torch.no_grad():
        model.fc1.weight[:25] = 0
    exported = export(model, torch.randn(1, 1, 28, 28))
    found = load(tmp_path, exported.weights, architecture=exported.architecture, signature=exported.signature)
    assert found["layer_sparsity"] == {"conv1": 0.0, "conv2": 0.0, "fc1": 0.5, "fc2": 0.0}
    assert found["sparsity"] == pytest.approx(8000 / (250 + 5000 + 16000 + 500))


def test_weights_alone_need_an_architecture_and_a_signature(tmp_path: Path) -> None:
    state = torch_bytes({"state_dict": SimpleCNN().state_dict()})
    with pytest.raises(BadArchitecture, match=r"conv1\.weight") as caught:
        load(tmp_path, state)
    assert caught.value.code == "architecture_missing"
    assert "enginesmith.export" in str(caught.value.hint)
    layers = [{"type": "Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 3}]
    with pytest.raises(Unprocessable) as missing:
        load(tmp_path, torch_bytes(nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict()), architecture={"sequential": layers})
    assert missing.value.code == "signature_missing"
    for bad in ({}, {"code": "x"}, {"graph": {}, "sequential": []}, {"library": "os", "name": "system"}):
        with pytest.raises(BadArchitecture):
            load(tmp_path, state, architecture=bad, signature=IMAGE)


def test_a_wrong_signature_says_what_happened(tmp_path: Path) -> None:
    exported = export(SimpleCNN(), torch.randn(1, 1, 28, 28))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"inputs": [{"name": "x", "shape": [-1, 3, 28, 28]}]}, r"does not run on x: float32 \[-1, 3, 28, 28\]"),
        ({"inputs": [{"name": "x", "shape": [-1, 1, 28, 28]}, {"name": "y", "shape": [-1]}]}, "takes 1 inputs"),
        (IMAGE | {"outputs": [{"name": "y", "shape": [-1, 7]}]}, r"\[-1, 10\], the signature says"),
        ({"inputs": []}, "not well formed"),
    ]
    for signature, said in wrong:
        with pytest.raises(Unprocessable, match=said):
            load(tmp_path, exported.weights, architecture=exported.architecture, signature=signature)
    with pytest.raises(Unprocessable, match="2 labels were given, and the network has 10 classes"):
        load(tmp_path, exported.weights, architecture=exported.architecture, signature=IMAGE, labels=["a", "b"])


def test_nan_weights_are_refused_by_name(tmp_path: Path) -> None:
    model = SimpleCNN()
    exported = export(model, torch.randn(1, 1, 28, 28))
    state = {k: v.clone() for k, v in exported.state_dict.items()}
    state["fc2.bias"][3] = float("nan")
    save_file(state, tmp_path / "a")
    with pytest.raises(BadCheckpoint, match=r"fc2\.bias"):
        load(tmp_path, tmp_path / "a", architecture=exported.architecture, signature=IMAGE)


def test_a_pickled_stack_and_a_single_layer_need_no_architecture(tmp_path: Path) -> None:
    stack = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 26 * 26, 4))
    found = load(tmp_path, torch_bytes(stack), signature=IMAGE)
    assert found["form"] == "graph"
    assert any("rebuilt from 4 layers" in note for note in found["notes"])
    linear = load(tmp_path, torch_bytes(nn.Linear(5, 3)))
    assert [list(t["shape"]) for t in linear["signature"]["inputs"]] == [[-1, 5]]
    with pytest.raises(BadArchitecture, match=r"networks\.SimpleCNN, whose code is not run"):
        load(tmp_path, torch_bytes(SimpleCNN()))


def scripted(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model.eval()), buffer)
    return buffer.getvalue()


def test_torchscript(tmp_path: Path) -> None:
    program = scripted(SimpleCNN())
    found = load(tmp_path, program, signature=IMAGE)
    assert (found["format"], found["trainable"]) == ("torchscript", False)
    assert found["signature"]["outputs"][0]["name"] == "logits"
    assert (tmp_path / "out" / "model.pt").read_bytes() == program
    with pytest.raises(Unprocessable, match=r"\(x: Tensor\)") as caught:
        load(tmp_path, program)
    assert caught.value.code == "signature_missing"
    exported = export(SimpleCNN(), torch.randn(1, 1, 28, 28))
    trainable = load(tmp_path, program, architecture=exported.architecture, signature=IMAGE)
    assert (trainable["format"], trainable["trainable"]) == ("torch", True)
    with pytest.raises(BadArchitecture, match="does not run on"):
        load(tmp_path, program, signature={"inputs": [{"name": "x", "shape": [-1, 1, 40, 40]}]})


def test_pt2_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.randn(1, 2),))
    torch.export.save(program, tmp_path / "a.pt2")
    with pytest.raises(BadCheckpoint) as caught:
        load(tmp_path, tmp_path / "a.pt2")
    assert caught.value.code == "pt2_refused"
    assert "export" in str(caught.value.hint)


# Anything else


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04", b"hello world" * 100, b"\x80\x04K\x01.", b"{}"])
def test_what_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        load(tmp_path, content)
    assert caught.value.hint
    assert 400 <= caught.value.status < 500


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy", "onnx", "torchscript", "folder"])
def test_truncated_files(kind: str, tmp_path: Path) -> None:
    whole = {
        "safetensors": lambda: export(SimpleCNN(), torch.randn(1, 1, 28, 28)).weights,
        "torch": lambda: torch_bytes(SimpleCNN().state_dict()),
        "legacy": lambda: torch_bytes(SimpleCNN().state_dict(), _use_new_zipfile_serialization=False),
        "onnx": lambda: onnx_bytes(),
        "torchscript": lambda: scripted(SimpleCNN()),
        "folder": lambda: packed({"config.json": b"{}", "model.safetensors": b"x" * 5000}),
    }[kind]()
    for share in (0.02, 0.3, 0.6, 0.95):
        with pytest.raises(Problem) as caught:
            load(tmp_path, whole[: int(len(whole) * share)], signature=IMAGE)
        assert 400 <= caught.value.status < 500


def packed(files: dict[str, bytes], kind: str = "zip") -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FOLDER = {"config.json": b"{}", "model.safetensors": b"x"}
HOSTILE_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "zip above": lambda: packed(FOLDER | {"../evil": b"x"}),
    "zip absolute": lambda: packed(FOLDER | {"/tmp/evil-enginesmith": b"x"}),
    "tar above": lambda: packed(FOLDER | {"../../evil": b"x"}, "tar"),
    "tar link": lambda: _tar_link(tarfile.SYMTYPE),
    "tar hard link": lambda: _tar_link(tarfile.LNKTYPE),
    "tar device": lambda: _tar_link(tarfile.CHRTYPE),
    "bomb": lambda: packed(FOLDER | {"zeros": bytes(2**28 + 1)}),
    "tar bomb": lambda: packed(FOLDER | {"zeros": bytes(2**28 + 1)}, "tar"),
    "many": lambda: packed(FOLDER | {str(n): b"" for n in range(1200)}),
    "file and folder": lambda: packed(FOLDER | {"config.json/x": b"x"}),
    "tar file and folder": lambda: packed(FOLDER | {"config.json/x": b"x"}, "tar"),
    "damaged": lambda: _damaged(),
}


def _damaged() -> bytes:
    """A file in it is not what its checksum says."""
    text = bytes(range(250))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (FOLDER | {"notes.txt": text}).items():
            archive.writestr(name, content)
    return buffer.getvalue().replace(text, text[::-1])


def _tar_link(kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in FOLDER.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


@pytest.mark.parametrize("name", HOSTILE_ARCHIVES)
def test_hostile_archives(name: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    before = set(tmp_path.iterdir())
    with pytest.raises(Problem) as caught:
        load(tmp_path / "inner", HOSTILE_ARCHIVES[name]())
    assert caught.value.status in (413, 422)
    assert set(tmp_path.iterdir()) == before
    assert not Path("/tmp/evil-enginesmith").exists()


def test_examples_fit_their_signature() -> None:
    signature = Signature(
        inputs=(
            Tensor(name="a", shape=(-1, 3, -1)),
            Tensor(name="tokens", dtype="int64", shape=(-1, -1)),
            Tensor(name="attention_mask", dtype="int64", shape=(-1, -1)),
            Tensor(name="flag", dtype="bool", shape=(), batch_axis=None),
        )
    )
    a, tokens, mask, flag = net.example(signature, nn.Sequential(nn.Embedding(7, 2)), batch=5, seed=3)
    assert (a.shape, tokens.shape, flag.shape) == ((5, 3, 32), (5, 16), ())
    assert int(tokens.max()) < 7
    assert bool((mask == 1).all())
    assert torch.equal(a, net.example(signature, None, batch=5, seed=3)[0])
