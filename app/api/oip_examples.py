"""The Open Inference Protocol in the OpenAPI page: schemas and examples of bodies that the routes read themselves."""

from __future__ import annotations

from typing import Any

ERROR_SCHEMA: dict[str, Any] = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_DATATYPE = {
    "type": "string",
    "enum": [
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32",
        "FP64", "BYTES",
    ],
}  # fmt: skip
_SHAPE = {"type": "array", "items": {"type": "integer"}}
_DATA = {
    "type": "array",
    "items": {},
    "description": "values in row-major order, flat or nested; FP16 and BF16 travel as binary only",
}
_SIZE = {
    "type": "integer",
    "description": "instead of data: so many bytes behind the JSON are this tensor (little-endian, row-major; BYTES: "
    "each element's length in 4 bytes, then itself)",
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "comes back with the answer"},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"type": "string"},
                    "shape": _SHAPE,
                    "datatype": _DATATYPE,
                    "data": _DATA,
                    "parameters": {"type": "object", "properties": {"binary_data_size": _SIZE}},
                },
            },
        },
        "outputs": {
            "type": "array",
            "description": "all outputs unless named",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "binary_data": {"type": "boolean"},
                            "classification": {
                                "type": "integer",
                                "description": 'so many best classes of each row, as BYTES "value:index[:label]"',
                            },
                        },
                    },
                },
            },
        },
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data_output": {
                    "type": "boolean",
                    "description": "every output as binary",
                },
                "timeout": {"type": "integer", "description": "a deadline, in microseconds; 0 for none"},
                "priority": {"type": "integer", "description": "1 goes first; 0 is the usual level"},
            },
        },
    },
}
_ANSWER = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "datatype": _DATATYPE,
                    "shape": _SHAPE,
                    "data": _DATA | {"description": "flat, in row-major order; null for NaN and infinity"},
                    "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
                },
            },
        },
    },
}
_X = {"name": "x", "shape": [1, 3], "datatype": "FP32"}
_EXAMPLES = {
    "json": {
        "summary": "values as JSON",
        "value": {"id": "42", "inputs": [{**_X, "data": [0.0, 0.5, 1.0]}]},
    },
    "classes": {
        "summary": "the two best classes",
        "value": {
            "inputs": [{**_X, "data": [[0.0, 0.5, 1.0]]}],
            "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
        },
    },
}
_BINARY_EXAMPLE = (
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}],'
    '"parameters":{"binary_data_output":true}} and 12 bytes; Inference-Header-Content-Length: the length of the JSON'
)
_ANSWERED = {
    "id": "42",
    "model_name": "digits",
    "model_version": "5",
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [-1.5, 4.25, 0.5]}],
}
_HEADERS = {
    "Inference-Header-Content-Length": (
        {"type": "integer"},
        "where binary tensors follow the JSON: its length, before any compression",
    ),
    "Content-Encoding": ({"type": "string", "enum": ["gzip", "deflate"]}, "how the body is compressed"),
    "Accept-Encoding": ({"type": "string"}, "gzip or deflate; answers below 8 KiB are sent as they are"),
    "X-Timeout-Ms": ({"type": "number", "minimum": 0}, "a deadline: past it the answer is 504"),
}


def told(**statuses: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: what each status means (`_404="no such deployment"`)."""
    media = {"application/json": {"schema": ERROR_SCHEMA}}
    return {int(status[1:]): {"description": why, "content": media} for status, why in statuses.items()}


ANY_ERROR: dict[int | str, dict[str, Any]] = {
    "default": {"description": "an error", "content": {"application/json": {"schema": ERROR_SCHEMA}}}
}


def shown(example: Any) -> dict[str, Any]:
    """`openapi_extra` of a route: what its answer looks like, and of what kind every field of it is."""
    media = {"application/json": {"schema": _like(example), "example": example}}
    return {"responses": {"200": {"description": "", "content": media}}}


def _like(example: Any) -> dict[str, Any]:
    """The schema of answers that have the fields of an example."""
    if isinstance(example, dict):
        fields = {name: _like(value) for name, value in example.items()}
        return {"type": "object", "required": list(fields), "properties": fields}
    if isinstance(example, list):
        return {"type": "array", "items": _like(example[0]) if example else {}}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[type(example)]}


INFER: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "schema": schema, "description": why} for name, (schema, why) in _HEADERS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _REQUEST, "examples": _EXAMPLES},
            "application/octet-stream": {"schema": _BINARY, "example": _BINARY_EXAMPLE},
        },
    },
    "responses": {
        "200": {
            "description": "JSON; and behind it the tensors that were asked for as binary",
            "content": {
                "application/json": {"schema": _ANSWER, "example": _ANSWERED},
                "application/octet-stream": {"schema": _BINARY},
            },
        }
    },
}
METADATA = {
    "name": "digits",
    "versions": ["5"],
    "platform": "openvino",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
}
_TIMES = {"count": 12, "ns": 3_400_000}
_STAGES = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _TIMES)
STATISTICS = {
    "model_stats": [
        {
            "name": "digits",
            "version": "5",
            "last_inference": 1_767_603_600_000,
            "inference_count": 12,
            "execution_count": 3,
            "inference_stats": {"success": _TIMES, "fail": {"count": 0, "ns": 0}, "queue": _TIMES} | _STAGES,
            "batch_stats": [{"batch_size": 4} | _STAGES],
        }
    ]
}
CONFIG = {
    "name": "digits",
    "platform": "openvino",
    "backend": "openvino",
    "max_batch_size": 64,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1, 28, 28]}],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
    "instance_group": [{"name": "digits", "kind": "KIND_CPU", "count": 1}],
    "model_transaction_policy": {"decoupled": False},
    "response_cache": {"enable": False},
}
INDEX = [{"name": "digits", "version": "5", "state": "READY", "reason": ""}]
