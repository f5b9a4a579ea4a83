"""Builds engines with TensorRT 8.6's own builder, whose ways are older than those of app/runtimes/_trt. Python 3.10."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import Internal
from app.gpu.messages import listener

WORKSPACE = 4 << 30  # bytes that a tactic may take


def build(trt: Any, onnx: Path, network_facts: Mapping[str, Any], precision: str) -> bytes:
    """A plan. network_facts: as eight_six_prepare.py writes them. Raises Internal with TensorRT's own words."""
    messages = listener(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(str(onnx)):
        raise Internal(f"TensorRT cannot read {onnx.name}: {messages.said()}", code="engine_failed")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    # Neither cuBLAS nor cuDNN: neither has to be here then.
    sources = (trt.TacticSource.JIT_CONVOLUTIONS, trt.TacticSource.EDGE_MASK_CONVOLUTIONS)
    config.set_tactic_sources(sum(1 << int(source) for source in sources))
    config.set_preview_feature(trt.PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805, True)
    # Without it a second execution context needs a profile of its own; from 9.0 on there is no other way.
    config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    config.clear_flag(trt.BuilderFlag.TF32)
    if precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    for facts in network_facts["profiles"]:
        profile = builder.create_optimization_profile()
        for name, bounds in facts.items():
            (profile.set_shape_input if name in network_facts["on_host"] else profile.set_shape)(name, *bounds)
        if config.add_optimization_profile(profile) < 0:
            raise Internal(f"the profile is refused: {messages.said()}", code="engine_failed")
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise Internal(f"TensorRT cannot build {onnx.name} in {precision}: {messages.said()}", code="engine_failed")
    return bytes(blob)
