"""The shape of the graph form as JSON; what may stand in it is workers/load/check.py."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import BadArchitecture

MAX_NODES = 50_000


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModuleData(_Data):
    type: str = Field(max_length=100)
    kwargs: dict[str, Any] = {}


class TensorData(_Data):
    kind: str = Field(pattern="^(parameter|buffer)$")
    shape: list[int] = Field(max_length=16)
    dtype: str = Field(max_length=20)


class NodeData(_Data):
    op: str = Field(pattern="^(placeholder|get_attr|call_module|call_function|call_method|output)$")
    name: str = Field(max_length=200)
    target: str = Field(max_length=400)
    args: list[Any] = Field([], max_length=10_000)
    kwargs: dict[str, Any] = {}


class GraphData(_Data):
    """`{"version": 1, "modules": {path: …}, "nodes": […], "tensors"?: {path: …}, "tied"?: {name: name}}`."""

    version: int
    modules: dict[str, ModuleData]
    nodes: list[NodeData] = Field(min_length=2, max_length=MAX_NODES)
    tensors: dict[str, TensorData] = {}
    tied: dict[str, str] = {}


def problem(data: Any, error: ValidationError) -> BadArchitecture:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    where = ".".join(str(p) for p in first["loc"])
    if len(first["loc"]) > 1 and first["loc"][0] == "nodes" and isinstance(first["loc"][1], int):
        node = data["nodes"][first["loc"][1]]
        name = node.get("name") if isinstance(node, dict) else None
        where = f"{where} (node {str(name)[:80]!r})" if name else where
    return BadArchitecture(
        f"the graph is not well formed at {where or 'its top'}: {first['msg']}",
        hint="let the client write it: enginesmith.export(model, example)",
        errors=[{"loc": ["architecture", "graph", *e["loc"]], "msg": e["msg"]} for e in found[:20]],
    )
