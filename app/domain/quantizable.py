"""Which versions can be quantized: asked at the submission, and again by the pass, for trials are never submitted."""

from __future__ import annotations

from app.domain.compression import QuantizeSpec
from app.domain.records import Version
from app.errors import Conflict, Unprocessable


def check(spec: QuantizeSpec, version: Version) -> None:
    """Raises Conflict for what is quantized already or cannot be trained, Unprocessable for several inputs."""
    if version.details.get("quantized"):
        raise Conflict(
            f"{version.ref} is quantized already",
            code="already_quantized",
            hint=f"quantize {version.parent or 'the version it came from'} instead",
        )
    if spec.mode == "qat" and not version.trainable:
        raise Conflict(
            f"{version.ref} is of format {version.format}, which cannot be trained, and qat trains",
            code="not_trainable",
            hint="use mode ptq, or a version of format torch",
        )
    inputs = version.signature.inputs
    if len(inputs) != 1:
        raise Unprocessable(
            f"{version.ref} takes {len(inputs)} inputs ({', '.join(t.name for t in inputs)}): "
            "the rows of a data set calibrate models of one input",
            code="several_inputs",
            hint="convert it in another precision that the target has",
        )
