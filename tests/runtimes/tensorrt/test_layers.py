"""What the engine inspector says, of TensorRT 10 and 11, and of a plan that was built with less to tell."""

from __future__ import annotations

import json

from app.runtimes._trt.layers import Layer, layers, summary

DETAILED = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "h", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
            "ParameterType": "Convolution",
            "TacticName": "sm90_xmma_fprop_implicit_gemm_f16f16",
        },
        {
            "Name": "fc", "LayerType": "gemm", "ParameterType": "MatrixMultiply", "TacticValue": "0x1",
            "Inputs": [{"Name": "h", "Format": "Row major linear", "Datatype": "Float"}], "Outputs": [],
        },
        {
            "Name": "gather", "LayerType": "Gather",
            "Inputs": [{"Name": "i", "Datatype": "Int64"}, {"Name": "table", "Datatype": "BFloat16"}], "Outputs": [],
        },
        {"Name": "quantized", "LayerType": "conv", "Inputs": [{"Format/Datatype": "Thirty-two wide Int8 format"}]},
        {"Name": "[Shape]", "LayerType": "Shape", "Inputs": [], "Outputs": [{"Datatype": "Int64"}]},
    ],
    "Bindings": ["x", "y"],
}  # fmt: skip


def test_every_layer_with_what_it_computes_in() -> None:
    found = layers(json.dumps(DETAILED))
    assert [layer.precision for layer in found] == ["fp16", "fp32", "bf16", "int8", "int64"]
    assert found[0] == Layer("conv1 + relu1", "Convolution", "fp16", "sm90_xmma_fprop_implicit_gemm_f16f16")
    assert summary(found) == {"fp16": 1, "fp32": 1, "bf16": 1, "int8": 1, "int64": 1}


def test_names_alone_and_nothing_at_all() -> None:
    assert layers('{"Layers": ["conv1"], "Bindings": []}') == [Layer("conv1", "?", "?")]
    assert layers("") == layers("[]") == layers('{"error": 1}') == []
