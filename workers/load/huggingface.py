"""A Hugging Face folder in an archive: config.json and safetensors. No code from it, nothing from the network."""

from __future__ import annotations

import gzip
import importlib
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.errors import BadArchitecture, BadCheckpoint, Unprocessable
from app.intake import archives, tars
from workers.load import library

_CHUNK = 1 << 20
# Keys of a config.json that name code, addresses or ways to run it: none of them belongs to the network.
_DROPPED = ("auto_map", "custom_pipelines", "_name_or_path", "torchscript", "transformers_version", "_commit_hash")
# Which kernels compute attention: a name there may be that of a repository whose code transformers would fetch.
_KERNELS = re.compile(r"_?attn_implementation")
_TASKS = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForAudioClassification": "audio-classification",
}


@dataclass(frozen=True)
class Folder:
    architecture: dict[str, Any]
    state: dict[str, torch.Tensor]
    task: str | None
    labels: list[str] | None
    preprocess: dict[str, Any] | None
    notes: tuple[str, ...]


def unpack(archive: Path, into: Path, *, max_files: int, max_bytes: int) -> Path:
    """The folder that holds config.json. Raises Unprocessable and TooLarge: paths, links, bombs."""
    into.mkdir(parents=True, exist_ok=True)
    limits = {"archive_bytes": archive.stat().st_size, "max_files": max_files, "max_bytes": max_bytes}
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, into, limits)
        else:
            _untar(archive, into, limits)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Unprocessable(
            "a name in the archive is a file and a folder at once", code="unsafe_archive", hint="pack it again"
        ) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise BadCheckpoint(
            f"the archive cannot be unpacked: {error or type(error).__name__}",
            hint="pack it again, and upload it whole",
        ) from error
    configs = sorted(into.rglob("config.json"), key=lambda p: len(p.parts))
    if not configs:
        raise BadCheckpoint("the archive holds no config.json", hint="pack the folder that save_pretrained wrote")
    return configs[0].parent


def read(folder: Path) -> Folder:
    """The network in a folder of `save_pretrained`. Raises BadCheckpoint, BadArchitecture."""
    config = _json(folder / "config.json")
    if not sorted(folder.glob("*.safetensors")):
        others = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".h5", ".msgpack")]
        raise BadCheckpoint(
            f"the folder holds no safetensors{f', only {others[0]}' if others else ''}",
            hint="save it with model.save_pretrained(folder, safe_serialization=True)",
        )
    if config.get("quantization_config"):
        raise BadCheckpoint("its weights are quantized", hint="upload the model in float32 or float16")
    name = _class(config)
    notes = []
    if config.get("auto_map"):
        notes.append("auto_map was ignored: no code from the folder is run")
    kind = getattr(importlib.import_module("transformers"), name)
    kwargs = {k: v for k, v in config.items() if k not in _DROPPED and not _KERNELS.match(k)}
    kwargs.pop("dtype", None)
    kwargs.pop("torch_dtype", None)
    try:
        model, loaded = kind.from_pretrained(
            folder,
            config=kind.config_class.from_dict(dict(kwargs)),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        said = str(error).strip().splitlines()
        raise BadArchitecture(
            f"transformers cannot load this {name}: {said[0][:400] if said else type(error).__name__}"
        ) from error
    absent = sorted(loaded.get("missing_keys") or ())
    odd = [str(m[0] if isinstance(m, tuple | list) else m) for m in loaded.get("mismatched_keys") or ()]
    if absent or odd:
        raise BadArchitecture(
            f"the weights do not fit {name}: {len(absent)} missing ({', '.join(absent[:5])}), "
            f"{len(odd)} of another shape ({', '.join(odd[:5])})",
            hint="upload the folder of the fine-tuned model, with its head",
        )
    ignored = sorted(loaded.get("unexpected_keys") or ())
    if ignored:
        notes.append(f"ignored {len(ignored)} tensors that {name} does not use ({', '.join(ignored[:3])})")
    state = {f"model.{k}": v.detach() for k, v in model.state_dict().items()}
    config_now = json.loads(model.config.to_json_string(use_diff=False))
    kwargs = {k: v for k, v in config_now.items() if k not in (*_DROPPED, "dtype") and not k.startswith("_")}
    return Folder(
        architecture={"library": "transformers", "name": name, "kwargs": kwargs},
        state=state,
        task=next((task for ending, task in _TASKS.items() if name.endswith(ending)), None),
        labels=_labels(config) if "Classification" in name else None,
        preprocess=_preprocess(folder, config),
        notes=tuple(notes),
    )


def _unzip(archive: Path, into: Path, limits: dict[str, int]) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = [m.name for m in archives.guarded(archives.of_zip(opened), **limits)]
        for name in names:
            if not name.endswith("/"):
                with opened.open(name) as source:
                    _copy(source, into / name, limits["max_bytes"])


def _untar(archive: Path, into: Path, limits: dict[str, int]) -> None:
    with archive.open("rb") as stream:
        tars.examine(stream, **limits)  # type: ignore[arg-type]
    with tarfile.open(archive) as tar:
        for member in tar:
            packed = tar.extractfile(member) if member.isreg() else None
            if packed is not None:
                with packed:
                    _copy(packed, into / member.name, limits["max_bytes"])


def _copy(source: Any, to: Path, limit: int) -> None:
    """Bytes as they really are, whatever the archive's list says of them."""
    to.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with to.open("wb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise Unprocessable(f"{to.name} unpacks to more than {limit} bytes", code="archive_bomb")
            file.write(chunk)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path.name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadCheckpoint(f"{path.name} is no JSON object")
    return found


def _class(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    if name is None:
        raise BadArchitecture(
            "config.json does not say its architecture", hint='add "architectures": ["BertForSequenceClassification"]'
        )
    known = library.architectures()
    if name not in known:
        raise BadArchitecture(
            f"transformers has no architecture {name!r}"
            + (": it is code from the hub (auto_map), which is not run" if config.get("auto_map") else ""),
            hint="use an architecture that transformers itself has, or export the network: enginesmith.export",
        )
    return name


def _labels(config: dict[str, Any]) -> list[str] | None:
    table = config.get("id2label")
    if not isinstance(table, dict) or not all(str(k).isdigit() for k in table):
        return None
    return [str(table[k])[:200] for k in sorted(table, key=int)]


def _preprocess(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """In this service's own words, where the folder's preprocessor says the same."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    said = _json(path)
    size, crop = said.get("size"), said.get("crop_size") if said.get("do_center_crop") else None
    found: dict[str, Any] = {"channels": config.get("num_channels", 3) if config.get("num_channels") in (1, 3) else 3}
    if isinstance(size, dict) and said.get("do_resize", True):
        if "shortest_edge" in size:
            found["resize"] = size["shortest_edge"]
        elif {"height", "width"} <= size.keys():
            found["resize"] = [size["height"], size["width"]]
    elif isinstance(size, int) and said.get("do_resize", True):
        found["resize"] = [size, size]
    if isinstance(crop, dict) and {"height", "width"} <= crop.keys():
        found["crop"] = [crop["height"], crop["width"]]
    found["scale"] = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    if said.get("do_normalize", True) and said.get("image_mean") and said.get("image_std"):
        found["mean"], found["std"] = said["image_mean"], said["image_std"]
    found["interpolation"] = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(said.get("resample", 2), "bilinear")
    return found
