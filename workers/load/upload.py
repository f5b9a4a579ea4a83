"""What the sandbox does for an import: one uploaded file → the files of a version, and what was found in it."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from app.domain.records import Signature
from app.errors import BadArchitecture, BadCheckpoint
from app.intake import checkpoint
from workers import net
from workers.load import architecture, huggingface, safetensors, sequential, signature, state_dict, torchscript
from workers.load.state_dict import Weights
from workers.nn.macs import macs

ONNX, SCRIPT = "model.onnx", "model.pt"


def load(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Reads folder/`file` by its content and writes folder/out. Raises Problem.

    arguments: file, architecture, signature, labels, task, preprocess, max_files, max_bytes, threads. The answer:
    fields of a version, and `notes`.
    """
    torch.set_num_threads(max(1, int(arguments.get("threads") or 1)))
    path, out = folder / arguments["file"], folder / "out"
    out.mkdir(exist_ok=True)
    said = signature.given(arguments.get("signature"))
    kind = kind_of(path)
    if kind == "onnx":
        found = _onnx(path, out, said, arguments)
    elif kind == "torchscript":
        found = _script(path, out, said, arguments)
    elif kind == "folder":
        found = _folder(path, out, said, arguments, folder)
    else:
        weights = safetensors.read(path) if kind == "safetensors" else state_dict.read(path)
        found = _weights(weights, out, said, arguments)
    for field in ("task", "labels", "preprocess"):
        if arguments.get(field) is not None:
            found[field] = arguments[field]
    signature.check_labels(Signature.model_validate(found["signature"]), found.get("labels"))
    return found | {"kind": kind}


def kind_of(path: Path) -> str:
    """What a file is by its content, whatever its name: onnx, safetensors, torch, torchscript or folder.

    Raises BadCheckpoint, UnsupportedMedia.
    """
    with path.open("rb") as file:
        kind = checkpoint.recognise(file.read(checkpoint.HEAD))
    if kind == "legacy_torch":
        return "torch"
    if kind == "zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return checkpoint.classify(archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise BadCheckpoint(f"the archive is damaged: {error}", hint="upload it again, whole") from error
    if kind in ("tar", "packed_tar"):
        if not tarfile.is_tarfile(path):
            raise checkpoint.foreign("a packed file, and no tar")
        return "folder"
    return kind


def _weights(weights: Weights, out: Path, said: Signature | None, arguments: dict[str, Any]) -> dict[str, Any]:
    given = arguments.get("architecture")
    notes = list(weights.notes)
    if given is None and weights.module is not None:
        layers = sequential.from_pickled(weights.module)
        if layers is not None:
            given = {"sequential": layers}
            if not weights.module.path.endswith(".Sequential"):
                # A single layer has no path; as a stack of one it is called 0.
                weights = Weights({f"0.{k}": v for k, v in weights.state.items()}, module=weights.module)
            notes.append(f"rebuilt from {len(layers)} layers of torch.nn that it consists of")
    if given is None:
        what = f"a whole {weights.module.path}, whose code is not run" if weights.module else "weights alone"
        raise BadArchitecture(
            f"the file holds {what} ({len(weights.state)} tensors: {', '.join(list(weights.state)[:4])} …): "
            "it does not say how they are connected",
            code="architecture_missing",
            hint="give `architecture` in the manifest: enginesmith.export(model, example) writes it from an nn.Module; "
            'by hand, {"sequential": [{"type": "Linear", "in_features": 4, "out_features": 2}, …]}',
        )
    built = architecture.build(given, weights.state, said)
    return _network(built.net, out) | {"notes": [*notes, *built.notes]}


def _network(found: net.Net, out: Path) -> dict[str, Any]:
    """Writes a network, reads it again as a job will, and makes sure that it answers the same."""
    net.save(found, out)
    again = net.rebuild(found.architecture, net.read_weights(out / net.WEIGHTS))
    inputs = net.example(found.signature, found.module)
    with torch.no_grad():
        one, _ = net.flatten(found.module(*inputs))
        two, _ = net.flatten(again(*inputs))
    if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(one, two, strict=True)):
        raise BadArchitecture("built again from what is stored, the network answers differently: it is not stored")
    return {
        "format": "torch",
        "signature": found.signature.model_dump(),
        "parameters": net.parameters(found.module),
        "macs": macs(found.module, net.example(found.signature, found.module, batch=1)),
        "sparsity": net.sparsity(found.module),
        "layer_sparsity": net.layer_sparsity(found.module),
        "trainable": True,
        "form": "graph" if "graph" in found.architecture else "library",
    }


def _folder(path: Path, out: Path, said: Signature | None, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    limits = {"max_files": int(arguments["max_files"]), "max_bytes": int(arguments["max_bytes"])}
    read = huggingface.read(huggingface.unpack(path, folder / "unpacked", **limits))
    built = architecture.build(read.architecture, read.state, said or _sized(read.preprocess))
    found = _network(built.net, out) | {"notes": [*read.notes, *built.notes], "task": read.task, "labels": read.labels}
    return found | {"preprocess": read.preprocess}


def _sized(preprocess: dict[str, Any] | None) -> Signature | None:
    """The input of a network for images, where the folder's preprocessing says its size."""
    size = (preprocess or {}).get("crop") or (preprocess or {}).get("resize")
    if preprocess is None or not isinstance(size, list):
        return None
    tensor = {"name": "pixel_values", "shape": [-1, preprocess["channels"], *size]}
    return Signature.model_validate({"inputs": [tensor]})


def _script(path: Path, out: Path, said: Signature | None, arguments: dict[str, Any]) -> dict[str, Any]:
    module = torchscript.read(path)
    state = {k: v.detach() for k, v in module.state_dict().items()}
    if arguments.get("architecture") is not None:
        notes = ["the weights were taken out of the TorchScript program"]
        return _weights(Weights(state, tuple(notes)), out, said, arguments)
    notes = ["TorchScript is kept as it is: not trainable, not prunable; with an `architecture` it would be"]
    found = torchscript.observe(module, said, notes)
    shutil.copyfile(path, out / SCRIPT)
    layers = {k.removesuffix(".weight"): v for k, v in state.items() if k.endswith(".weight") and v.ndim >= 2}
    zeros = {k: int((v == 0).sum()) for k, v in layers.items()}
    return {
        "format": "torchscript",
        "signature": found.model_dump(),
        "parameters": sum(p.numel() for p in module.parameters()),
        "sparsity": sum(zeros.values()) / max(1, sum(v.numel() for v in layers.values())),
        "layer_sparsity": {k: zeros[k] / max(1, v.numel()) for k, v in layers.items()},
        "trainable": False,
        "notes": notes,
    }


def _onnx(path: Path, out: Path, said: Signature | None, arguments: dict[str, Any]) -> dict[str, Any]:
    from workers.load import onnx
    from workers.nn.macs import onnx_macs

    found = onnx.read(path, said, int(arguments.get("threads") or 1))
    notes = list(found.notes)
    if arguments.get("architecture") is not None:
        notes.append("the architecture was ignored: an ONNX file has its own")
    shutil.copyfile(path, out / ONNX)
    return {
        "format": "onnx",
        "signature": found.signature.model_dump(),
        "parameters": found.parameters,
        "macs": onnx_macs(path),
        "sparsity": found.sparsity,
        "layer_sparsity": found.layer_sparsity,
        "trainable": False,
        "details": {"opset": found.opset, "architecture": found.architecture},
        "notes": notes,
    }
