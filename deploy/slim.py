"""Takes out of an image's site-packages what the app never uses: python slim.py SITE_PACKAGES. Says how many MB went.

Compilers, plugins for other devices, frontends of other file formats, tests, headers, stubs. tests/test_deploy.py runs
what is left: both runtimes, Parquet, a report.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

GOES = (
    # OpenVINO: the app runs what workers have compiled, on a CPU.
    "openvino/libs/libopenvino_intel_gpu_plugin.so",
    "openvino/libs/libopenvino_intel_npu_plugin.so",
    "openvino/libs/cache.json",
    "openvino/libs/libopenvino_*_frontend.so*",
    "openvino/libs/pkgconfig",
    "openvino/include",
    "openvino/cmake",
    "openvino/frontend/*/",
    "openvino/tools",
    "openvino/torch",
    # ONNX Runtime: what makes and changes graphs, and the library for C.
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/transformers",
    "onnxruntime/tools",
    "onnxruntime/quantization",
    "onnxruntime/datasets",
    # Arrow: remote stores and services. Parquet is read from files.
    "pyarrow/libarrow_flight.so*",
    "pyarrow/libarrow_python_flight.so*",
    "pyarrow/_flight*",
    "pyarrow/libarrow_s3.so*",
    "pyarrow/_s3fs*",
    "pyarrow/include",
    "pyarrow/src",
    "pyarrow/includes",
    # matplotlib draws SVG, with the fonts that it brings.
    "matplotlib/mpl-data/sample_data",
    "matplotlib/mpl-data/fonts/afm",
    "matplotlib/mpl-data/fonts/pdfcorefonts",
    "numpy/f2py",
    "simdjson/*.cpp",
    "simdjson/*.h",
    "simdjson/*.pyx",
    # Nothing is installed any more.
    "pip",
    "pip-*",
    "setuptools",
    "setuptools-*",
    "pkg_resources",
    "_distutils_hack",
    "distutils-precedence.pth",
)
KEPT = ("openvino/libs/libopenvino_ir_frontend.so*",)
ANYWHERE = ("tests",)


def slim(site: Path) -> float:
    """Megabytes that went."""
    before = _size(site)
    kept = {path for pattern in KEPT for path in site.glob(pattern)}
    for pattern in GOES:
        for path in site.glob(pattern):
            if path not in kept:
                _remove(path)
    for name in ANYWHERE:
        for path in list(site.rglob(name)):
            if path.is_dir():
                _remove(path)
    _link_copies(site / "pyarrow")
    return (before - _size(site)) / 1e6


def _link_copies(folder: Path) -> None:
    """Wheels have no links: libarrow_python.so lies there three times."""
    seen: dict[bytes, Path] = {}
    for path in sorted(folder.glob("*.so*"), reverse=True):
        if not path.is_symlink() and path.is_file():
            first = seen.setdefault(path.read_bytes(), path)
            if first != path:
                path.unlink()
                path.symlink_to(first.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    sys.stdout.write(f"{slim(Path(sys.argv[1])):.0f} MB went\n")
