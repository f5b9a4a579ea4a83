"""Architectures that a library knows by name: torchvision, timm, transformers. Their weights never come from a network.

Only what the worker has installed can be named. A library's network answers with plain tensors, like any other.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from app.domain.records import Signature
from app.errors import BadArchitecture

LIBRARIES = ("torchvision", "timm", "transformers")
# Keywords that would fetch something, or name code to run.
_REFUSED = re.compile(
    r"^(pretrained.*|weights.*|checkpoint.*|hf_.*|cache_dir|features_only|scriptable|exportable|trust_remote_code|"
    r"auto_map|quantization_config|backbone|use_timm_backbone|use_pretrained_backbone|_attn_implementation.*|"
    r"attn_implementation|_name_or_path|custom_pipelines|exporters_config|kernel_config|use_kernels)$"
)
# What a hostile keyword may ask for, in elements beyond the weights that were uploaded.
_SPARE = 1_000_000


class Plain(nn.Module):
    """A transformers model that takes its inputs in order and returns one tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        found = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True)
        for field in ("logits", "last_hidden_state", "pooler_output"):
            if found.get(field) is not None:
                return found[field]  # type: ignore[no-any-return]
        raise BadArchitecture(f"{type(self.model).__name__} returns neither logits nor a last hidden state")


def build(architecture: Mapping[str, Any], elements: int) -> nn.Module:
    """The network by name, with weights drawn at random. elements: how many numbers its checkpoint holds.

    Raises BadArchitecture for a library that is missing, a name it does not know, keywords it refuses, or a network
    larger than its checkpoint.
    """
    library, name, kwargs = architecture.get("library"), architecture.get("name"), architecture.get("kwargs") or {}
    if library not in LIBRARIES:
        raise BadArchitecture(f"the library {str(library)[:60]!r} is not one of {', '.join(LIBRARIES)}")
    if not isinstance(name, str) or not isinstance(kwargs, dict):
        raise BadArchitecture('a library architecture is {"library": …, "name": "resnet18", "kwargs": {…}}')
    _check(kwargs)
    make = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library]
    try:
        with torch.device("meta"):
            size = sum(t.numel() for t in make(name, kwargs).state_dict().values())
    except BadArchitecture:
        raise
    except Exception as error:
        raise BadArchitecture(f"{library} refuses {name!r} with {_brief(kwargs)}: {_line(error)}") from error
    if size > elements + _SPARE and size > 2 * elements:
        raise BadArchitecture(
            f"{library}'s {name} with {_brief(kwargs)} has {size:,} numbers, the checkpoint {elements:,}",
            hint="give the architecture that the weights belong to",
        )
    try:
        return make(name, kwargs).eval()
    except Exception as error:
        raise BadArchitecture(f"{library} refuses {name!r} with {_brief(kwargs)}: {_line(error)}") from error


def installed() -> list[str]:
    """The libraries that this worker has."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]


def _check(kwargs: Mapping[str, Any], path: str = "kwargs") -> None:
    for key, value in kwargs.items():
        if _REFUSED.match(str(key)):
            raise BadArchitecture(
                f"{path}.{key} is not taken: nothing is fetched, and no code beside the library's runs"
            )
        if isinstance(value, str) and re.search(r"://|^hf[-_]hub", value):
            raise BadArchitecture(f"{path}.{key} names an address: nothing is fetched")
        if isinstance(value, dict):
            _check(value, f"{path}.{key}")


def _need(library: str) -> Any:
    if importlib.util.find_spec(library) is None:
        raise BadArchitecture(
            f"this worker has no {library}: it has {', '.join(installed()) or 'none of the libraries'}",
            code="library_missing",
            hint=f"install {library} on the worker, or send the architecture as a graph: enginesmith.export",
        )
    return importlib.import_module(library)


def _torchvision(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    _need_torchvision()
    models = importlib.import_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise BadArchitecture(
            f"torchvision has no classification model {name!r}", hint=_alike(name, models.list_models(module=models))
        )
    found: nn.Module = models.get_model(name, weights=None, **kwargs)
    return found


def _need_torchvision() -> None:
    if importlib.util.find_spec("torchvision") is None:
        _need("torchvision")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        # A build for CUDA beside a torch for CPUs: its compiled operators are missing; classifiers need none.
        for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        schemas: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(schemas)
        importlib.import_module("torchvision")


# The schemas go when the object that declared them does.
_KEPT: list[Any] = []


def _timm(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    if importlib.util.find_spec("timm") is not None and importlib.util.find_spec("torchvision") is not None:
        _need_torchvision()
    timm = _need("timm")
    if name not in timm.list_models():
        raise BadArchitecture(f"timm has no model {name!r}", hint=_alike(name, timm.list_models()))
    found: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    return found


def _transformers(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    _need("transformers")
    known = architectures()
    if name not in known:
        raise BadArchitecture(f"transformers has no architecture {name!r}", hint=_alike(name, known))
    kind = getattr(importlib.import_module("transformers"), name)
    config = kind.config_class.from_dict(dict(kwargs))
    if kwargs.get("model_type") not in (None, config.model_type):
        raise BadArchitecture(f"{name} is a {config.model_type}, the configuration says {kwargs['model_type']!r}")
    model = kind(config)
    return Plain(model, input_names(model))


def architectures() -> list[str]:
    """The classes of transformers that an architecture may name: those of its own Auto classes."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    tables = [v for k, v in vars(auto).items() if k.startswith("MODEL_") and k.endswith("MAPPING_NAMES")]
    found: set[str] = set()
    for table in tables:
        for names in table.values():
            found |= set(names) if isinstance(names, tuple | list) else {names}
    return sorted(found)


def input_names(model: nn.Module) -> tuple[str, ...]:
    """What a transformers model is fed with: pixel_values, or input_ids and attention_mask."""
    main = str(getattr(model, "main_input_name", "input_ids"))
    return ("input_ids", "attention_mask") if main == "input_ids" else (main,)


def inputs(model: nn.Module) -> Signature | None:
    """What a library's network takes, as its own configuration says it; None where it does not."""
    if not isinstance(model, Plain):
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        return _signature({"x": ("float32", [-1, *size])}) if size else None
    config: Any = model.model.config
    if model.names == ("input_ids", "attention_mask"):
        return _signature({name: ("int64", [-1, -1]) for name in model.names})
    if model.names == ("pixel_values",):
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return _signature({"pixel_values": ("float32", [-1, getattr(config, "num_channels", 3), height, width])})
    return None


def _signature(tensors: dict[str, tuple[str, list[int]]]) -> Signature:
    return Signature.model_validate(
        {"inputs": [{"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()]}
    )


def _alike(name: str, names: Any) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {' or '.join(close)}?" if close else None


def _brief(kwargs: Mapping[str, Any]) -> str:
    said = ", ".join(f"{k}={v!r}" for k, v in kwargs.items())
    return f"kwargs ({said[:200]}{'…' if len(said) > 200 else ''})"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
