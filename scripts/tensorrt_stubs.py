"""Empty libraries in the place of those that a library needs and that are not here, so that it loads.

    python scripts/tensorrt_stubs.py LIBRARY FOLDER NAME…     LD_LIBRARY_PATH=FOLDER then finds them

NAME: how those to be made begin: `libnvinfer libnvonnxparser` makes what TensorRT's Python bindings need to be imported
and looked at; `libcublas libcudnn` under libnvinfer_plugin.so.8 leaves out two gigabytes of which a plan that was built
without cuBLAS and cuDNN uses nothing. Nothing behind them can run. Needs gcc and what comes with it, on Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TOOLS = ("gcc", "nm", "readelf")
# What TensorRT's libraries give its bindings: these names have no version that tells whose they are.
_TENSORRT = re.compile(r"(?:createInfer|createNv|get(?:Builder)?PluginRegistry|getNvOnnx|initLibNv)\w*")


def needed(library: Path) -> list[str]:
    """Names of the libraries that it is linked with."""
    told = _asked("readelf", "-d", "-W", str(library))
    return re.findall(r"\(NEEDED\).*\[(.+)\]", told)


def write(library: Path, folder: Path, beginnings: Sequence[str]) -> list[str]:
    """Makes the libraries whose names begin so, in `folder`; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = [line.split()[-1] for line in _asked("nm", "-D", "--undefined-only", str(library)).splitlines()]
    found = [name for name in needed(library) if name.startswith(tuple(beginnings))]
    for name in found:
        theirs = [s.partition("@")[0] for s in symbols if s.partition("@")[2] == name]
        _link(name, theirs or [s for s in symbols if _TENSORRT.fullmatch(s)], bool(theirs), folder)
    return found


def _link(name: str, symbols: Sequence[str], versioned: bool, folder: Path) -> None:
    """Every function answers 1, which is a failure of cuBLAS's and cuDNN's; of TensorRT's it is no object: 0."""
    code = "".join(f"void *{symbol}(void) {{ return (void *){int(versioned)}; }}\n" for symbol in sorted(set(symbols)))
    with tempfile.TemporaryDirectory() as temporary:
        source, versions = Path(temporary, "stub.c"), Path(temporary, "stub.map")
        source.write_text(code)
        versions.write_text(f"{name} {{ global: *; }};\n")
        tagged = [f"-Wl,--version-script={versions}"] if versioned else []
        _asked("gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", *tagged, "-o", str(folder / name), str(source))


def _asked(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.stdout.write("\n".join(write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])) + "\n")
