"""Nothing is told to anybody: the libraries leave no trace in a home folder."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USE = """
from pathlib import Path
import onnx
from onnx import TensorProto, helper
from app import runtimes
from app.domain.records import Signature, Tensor
from app.runtimes import BuildOptions, LoadOptions
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
source = Path("source.onnx")
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
source.write_bytes(model.SerializeToString())
signature = Signature(inputs=(Tensor(name="x", shape=(-1, 4)),), outputs=(Tensor(name="y", shape=(-1, 4)),))
for name in ("openvino", "onnxruntime"):
    folder = Path(name)
    folder.mkdir()
    runtimes.get(name).build(source, folder, BuildOptions(), lambda share, phase: None)
    runtimes.get(name).load(folder, signature, LoadOptions(threads=1)).close()
"""


def test_nothing_is_left_in_the_home_folder(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environ = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", USE], cwd=work, env=environ, check=True, timeout=240)
    assert list(home.rglob("*")) == []
