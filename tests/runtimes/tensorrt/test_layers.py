"""What the engine inspector says, of TensorRT 10 and 11, and of a plan that was built with less to tell."""

from __future__ import annotations

import json

from app.runtimes._trt.layers import Layer, executed, layers, timed

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


def test_names_alone_and_nothing_at_all() -> None:
    assert layers('{"Layers": ["conv1"], "Bindings": []}') == [Layer("conv1", "?", "?")]
    assert layers("") == layers("[]") == layers('{"error": 1}') == []


def test_which_layer_computes_which_product_of_the_graph() -> None:
    """As TensorRT 11 tells it: what comes after a product names that product, too."""
    half, int8 = [{"Datatype": "Half"}], [{"Datatype": "Int8"}]
    told = [
        {"Name": "__myl_Quan_myl0_1", "LayerType": "kgen", "Inputs": half, "Metadata": "[ONNX Layer: Quantize_1]"},
        {"Name": "__myl_After_0", "LayerType": "kgen", "Inputs": half, "Metadata": "[ONNX Layer: conv_1]"},
        {
            "Name": "conv_1_myl0_2", "LayerType": "correlation", "Inputs": int8,
            "Metadata": "[ONNX Layer: conv_1]\x1e[ONNX Layer: Dequantize[1]]\x1e[ONNX Layer: relu]",
        },
        {"Name": "fc_myl0_3", "LayerType": "gemm", "Inputs": half, "Metadata": "[ONNX Layer: fc][ONNX Layer: bias]"},
        {"Name": "head + head_relu", "LayerType": "CaskGemmConvolution", "Inputs": int8},
    ]  # fmt: skip
    operators = {"conv_1": "Conv", "fc": "Gemm", "bias": "Add", "relu": "Relu", "head": "MatMul", "Quantize_1": "Q"}
    found = layers(json.dumps({"Layers": told}), operators)
    assert [layer.products for layer in found] == [(), (), ("conv_1",), ("fc",), ("head",)]
    written = json.loads(json.dumps([layer.told() for layer in found]))
    assert executed(written) == {"conv_1": "int8", "fc": "fp16", "head": "int8"}
    assert executed([]) is None
    assert [layer.ms for layer in timed(found, {"fc_myl0_3": 0.25})] == [None, None, None, 0.25, None]


def test_types_that_dynamic_shapes_leave_open_are_those_of_the_weights_or_nobodys() -> None:
    open_ = {"Format/Datatype": "N/A due to dynamic shapes"}
    told = [
        {"Name": "a", "LayerType": "CaskConvolution", "Inputs": [open_], "Weights": {"Type": "Int8", "Count": 9}},
        {"Name": "b", "LayerType": "CaskConvolution", "Inputs": [open_]},
    ]
    found = layers(json.dumps({"Layers": told}), {"a": "Conv", "b": "Conv"})
    assert [layer.precision for layer in found] == ["int8", "?"]
    assert executed(layer.told() for layer in found) == {"a": "int8"}
    assert executed(layer.told() for layer in found[1:]) is None
