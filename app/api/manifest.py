"""What the `manifest` part of an uploaded model may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from app.api.problems import invalid
from app.domain.records import Name, Signature
from app.errors import BadArchitecture
from app.intake.manifest import Labels
from app.intake.preprocess import Preprocess

_CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)


class LibraryForm(BaseModel):  # type: ignore[no-redef]  # a field called kwargs confuses pydantic's plugin
    model_config = _CLOSED
    library: Literal["torchvision", "timm", "transformers"]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    kwargs: dict[str, Any] = {}


class SequentialForm(BaseModel):
    model_config = _CLOSED
    sequential: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=10_000)]

    @field_validator("sequential")
    @classmethod
    def _have_types(cls, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for i, layer in enumerate(layers):
            if not isinstance(layer.get("type"), str):
                raise ValueError(f'layer {i} has no "type", such as "Conv2d"')
        return layers


class GraphForm(BaseModel):
    model_config = _CLOSED
    graph: dict[str, Any]

    @field_validator("graph")
    @classmethod
    def _has_nodes(cls, graph: dict[str, Any]) -> dict[str, Any]:
        nodes = graph.get("nodes")
        if not isinstance(nodes, list) or not 0 < len(nodes) <= 100_000:
            raise ValueError('a graph needs "nodes": a list of 1 to 100000')
        if not isinstance(graph.get("modules", {}), dict):
            raise ValueError('"modules" must be an object')
        return graph


_FORMS: dict[str, TypeAdapter[Any]] = {
    "library": TypeAdapter(LibraryForm),
    "sequential": TypeAdapter(SequentialForm),
    "graph": TypeAdapter(GraphForm),
}


class ModelManifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name
    architecture: dict[str, Any] | None = Field(None, description="a graph, a sequential or a library's network")
    signature: Signature | None = Field(None, description="inputs and outputs, where the file does not say them")
    task: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    labels: Labels | None = Field(None, description="names of the classes from 0")
    preprocess: Preprocess | None = Field(None, description="how an encoded image becomes an input")


def check_architecture(architecture: dict[str, Any]) -> None:
    """Its outer form; what it builds is for the worker. Raises BadArchitecture."""
    found = [name for name in _FORMS if name in architecture]
    if len(found) != 1:
        raise BadArchitecture(
            "an architecture is one of three forms, and this is none"
            if not found
            else f"an architecture has one form, and this has {' and '.join(found)}",
            hint='{"graph": …} as the client\'s export makes it, {"sequential": [{"type": "Linear", …}, …]}, '
            'or {"library": "torchvision", "name": "resnet18"}',
        )
    try:
        _FORMS[found[0]].validate_python(architecture)
    except ValidationError as error:
        problem = invalid(error.errors(include_url=False, include_input=False, include_context=False), "architecture")
        told = [{"loc": ["architecture", *e["loc"]], "msg": e["msg"]} for e in problem.errors]
        raise BadArchitecture(f"the architecture is refused: {problem.detail}", errors=told) from None
