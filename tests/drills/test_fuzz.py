"""Wrong bodies of predictions, wrong checkpoints and wrong graphs, by the thousand: no crash, no hang, no memory."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enginesmith import export
from networks import NETWORKS
from PIL import Image
from safetensors.torch import save

from app.domain.records import Made, Signature, Tensor, Version
from app.errors import BadCheckpoint, Problem
from app.serving import wire
from app.settings import Settings
from workers.load import sandbox

from .mutating import mutated
from .telling import Tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SECONDS = float(os.environ.get("DRILLS_FUZZ_S", "300"))
MEMORY = 2 * 2**30
LONGEST_S = 20.0


def version(signature: Signature, **fields: Any) -> Version:
    about = {"name": "digits", "version": 5, "format": "openvino", "folder": "f", "files": {}, "bytes": 0}
    made = {"made_by": Made(job="j", spec={}), "created_at": "2026-01-01T00:00:00.000Z"}
    return Version.model_validate(about | made | {"signature": signature} | fields)


LOGITS = Tensor(name="logits", shape=(-1, 3))
ONE = version(Signature(inputs=(Tensor(name="x", shape=(-1, 3)),), outputs=(LOGITS,)))
SEVERAL = version(
    Signature(
        inputs=(
            Tensor(name="x", shape=(-1, -1)),
            Tensor(name="state", dtype="float16", shape=(2, -1, 4), batch_axis=1),
            Tensor(name="rate", dtype="int64", shape=(), batch_axis=None),
        ),
        outputs=(LOGITS,),
    )
)
PICTURE = version(
    Signature(inputs=(Tensor(name="x", shape=(-1, 1, 4, 6)),), outputs=(LOGITS,)),
    preprocess={"resize": [4, 6], "channels": 1},
)


def bodies() -> list[tuple[str, bytes, Version]]:
    x, held, packed, png, jpeg = np.ones((2, 3), np.float32), *(io.BytesIO() for _ in range(4))
    np.save(held, x)
    state = np.zeros((2, 2, 4), np.float16)
    np.savez(packed, x=x, state=state, rate=np.int64(16000))
    Image.new("L", (6, 4), 7).save(png, "PNG")
    Image.new("L", (6, 4), 7).save(jpeg, "JPEG")
    several = {"inputs": {"x": x.tolist(), "state": state.tolist(), "rate": 16000}, "outputs": ["logits"], "top_k": 2}
    return [
        ("json", json.dumps({"inputs": x.tolist(), "top_k": 1}).encode(), ONE),
        ("json", json.dumps(several).encode(), SEVERAL),
        ("npy", held.getvalue(), ONE),
        ("npz", packed.getvalue(), SEVERAL),
        ("image", png.getvalue(), PICTURE),
        ("image", jpeg.getvalue(), PICTURE),
    ]


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_bodies_of_predictions(tell: Tell) -> None:
    rng, seeds = random.Random(int(time.time())), bodies()
    others = [body for _, body, _ in seeds]
    ends: Counter[str] = Counter()
    before, slowest, until = peak(), 0.0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        kind, body, of = rng.choice(seeds)
        body = mutated(body, others, rng)
        began = time.monotonic()
        try:
            if kind == "image":
                wire.decode_image(body, of)
            else:
                wire.decode(kind, body, of, limit=1 << 24)  # type: ignore[arg-type]
            ends["taken"] += 1
        except Problem as problem:
            ends[problem.code] += 1
        except Exception as error:
            pytest.fail(f"{kind}: {type(error).__name__}: {error}: {body[:2000]!r}")
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 5
    assert peak() - before < 2**28
    told = ", ".join(f"{end} {count:,}" for end, count in ends.most_common())
    tell(f"{ends.total():,} wrong bodies in {SECONDS:.0f} s ({told}); the slowest took {slowest * 1e3:.0f} ms")


def planted(folder: Path, tree: bool) -> None:
    """Right uploads, to be made wrong."""
    seeds = folder / "seeds"
    seeds.mkdir(parents=True)

    def plant(name: str, file: bytes, given: dict[str, Any]) -> None:
        (seeds / f"{name}.bin").write_bytes(file)
        (seeds / f"{name}.json").write_text(json.dumps(given))

    for name in ("simple_cnn", "vit", "text", "tied", "splits", "recurrent"):
        kind, example = NETWORKS[name]
        torch.manual_seed(0)
        exported = export(kind().eval(), example)
        about = {"architecture": exported.architecture, "signature": exported.signature}
        plant(name, exported.weights, about)
    if tree:
        return
    import onnx

    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    signature = {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 3]}]}
    for name, content in {"whole": layers, "state": {"state_dict": layers.state_dict(), "epoch": 3}}.items():
        for legacy in (False, True):
            held = io.BytesIO()
            torch.save(content, held, _use_new_zipfile_serialization=not legacy)
            stack = {"sequential": [{"type": "Linear", "in_features": 3, "out_features": 4}]}
            given = {"signature": signature} | ({} if name == "whole" else {"architecture": stack})
            plant(f"{name}{legacy}", held.getvalue(), given)
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(layers, torch.zeros(1, 3)), script)
    plant("script", script.getvalue(), {"signature": signature})
    plant("tensors", save(layers.state_dict()), {"signature": signature, "architecture": {"sequential": []}})
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy")
    weight = onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    plant(
        "onnx", onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [weight])).SerializeToString(), {}
    )


@pytest.mark.parametrize("what", ["checkpoints", "graphs"])
def test_in_the_sandbox(what: str, tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """One child after the other, each with its fences and limits: a child that dies is one that refused its file."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = Settings(sandbox_memory_bytes=MEMORY, sandbox_cpu_s=int(SECONDS) + 120, threads=1)
    planted(tmp_path, tree=what == "graphs")
    ends: Counter[str] = Counter()
    slowest, most, until = 0.0, 0, time.monotonic() + SECONDS
    kept = Path(os.environ.get("DRILLS_KEEP", tmp_path / "kept"))
    while (left := until - time.monotonic()) > 0:
        asked = {"tree": what == "graphs", "seed": random.randrange(2**32), "seconds": min(left, 60)}
        try:
            found = sandbox.run("fuzzed:loads", tmp_path, asked, settings)
        except BadCheckpoint as problem:
            ends[problem.code] += 1
            shutil.copytree(tmp_path, kept / f"{ends.total()}", ignore=shutil.ignore_patterns("seeds", "kept"))
            continue
        ends.update(found["ends"])
        slowest, most = max(slowest, found["slowest_s"]), max(most, found["peak_bytes"])
    assert slowest < LONGEST_S
    assert most < MEMORY + 2**30  # code and mapped files are not counted by the limit
    assert ends["too_slow"] == 0
    told = ", ".join(f"{end} {count:,}" for end, count in ends.most_common())
    tell(
        f"{ends.total():,} wrong {what} in {SECONDS:.0f} s ({told}); the slowest took {slowest:.1f} s, "
        f"the largest child {most / 1e6:.0f} MB"
    )
