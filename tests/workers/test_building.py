"""A job that is cancelled while a real builder of TensorRT's works, which takes minutes where there is a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from running import until

from app.domain.records import Job, now
from app.runtimes._trt.flavour import RTX
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog

# The whole of a job's process but for what convert does before and after: without a GPU it would refuse the target.
# It builds again and again, so that a fast machine is in the middle of it, too, when it is cancelled.
BUILDS = """
import sys
from pathlib import Path
from workers.lease import Ending, block_sigterm
block_sigterm()
from app.queue import Queue
from app.runtimes import BuildOptions, tensorrt_rtx
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.catalog import Catalog
from workers.run import Parts, run_one
from workers.turn import Turn
def apply(spec, ctx):
    while True:
        progress = lambda share, phase: ctx.progress(share, 1, phase=phase)
        tensorrt_rtx.build(Path(sys.argv[1]), ctx.folder("version"), BuildOptions(), progress)
settings = Settings()
catalog, queue = Catalog.open(settings, settings.redis_url), Queue(settings.redis_url)
parts = Parts(settings, catalog, queue, Artifacts(settings.artifacts_url), Ending().heed(), apply)
run_one(catalog.job("j1"), parts, Turn(settings, catalog, queue, parts.process, None))
"""


def deep(path: Path, layers: int = 40, width: int = 32) -> Path:
    """A network that takes a builder some time."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for n in range(layers):
        shape = (width, width if n else 3, 3, 3)
        weights.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"w{n}"))
        nodes.append(helper.make_node("Conv", [last, f"w{n}"], [f"a{n}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"a{n}"], [last := f"r{n}"]))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, 16, 16])
        for name, channels in (("x", 3), (last, width))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.skipif(not RTX.is_installed, reason="TensorRT for RTX is not installed: pip install -e .[rtx]")
def test_a_job_that_is_cancelled_while_tensorrt_builds(
    settings: Settings, catalog: Catalog, artifacts: Artifacts, tmp_path: Path
) -> None:
    spec = {"kind": "convert", "model": "m@1", "target": "tensorrt_rtx"}
    catalog.add(Job(id="j1", kind="convert", spec=spec, model="m@1", created_at=now()))
    catalog.moved("j1", was={"queued"}, to="running", attempt=1, lease_s=600)
    often = settings.model_copy(update={"lease_s": 600, "lease_renew_s": 0.2})
    command = [sys.executable, "-c", BUILDS, str(deep(tmp_path / "deep.onnx"))]
    with subprocess.Popen(command, env=often.environ()) as process:
        try:
            ours = ("writing the graph in fp32", "looking at its layers", "built")

            def has_moved() -> bool:
                assert process.poll() is None, "it ended by itself"
                job = catalog.job("j1")
                return job.progress is not None and 0 < job.progress.done < 1 and job.phase not in ours

            until(has_moved)
            catalog.moved("j1", was={"running"}, to="cancelling")
            until(lambda: process.poll() is not None)
        finally:
            process.kill()
    assert catalog.job("j1").status == "cancelled"
    assert [key for place in ("models", "timing") for key in artifacts.keys(place)] == []
