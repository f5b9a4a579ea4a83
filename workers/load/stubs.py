"""What stands in for classes of strangers while a pickle is read: it keeps what it is given and does nothing."""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor
from torch._utils import IMPORT_MAPPING, NAME_MAPPING
from torch._weights_only_unpickler import _get_allowed_globals

from app.errors import BadCheckpoint

# The list of operations of a checkpoint, without its tensors: more is no checkpoint.
_MAX_PICKLE = 256 * 1024 * 1024
_MAX_DEPTH = 100
# Whoever names one of these in a checkpoint wants something to run.
_HOSTILE = frozenset(
    (
        *(
            "os",
            "posix",
            "nt",
            "sys",
            "subprocess",
            "importlib",
            "runpy",
            "ctypes",
            "socket",
            "shutil",
            "pty",
            "pickle",
        ),
        *(
            "_pickle",
            "code",
            "codeop",
            "marshal",
            "webbrowser",
            "multiprocessing",
            "asyncio",
            "pip",
            "pdb",
            "bdb",
            "timeit",
        ),
        *("profile", "cProfile", "threading", "_thread", "signal", "http", "urllib", "requests", "ftplib", "smtplib"),
        *("commands", "popen2", "imp", "zipimport", "io", "_io"),
    )
)
_BUILTINS = frozenset(
    (
        *("set", "frozenset", "dict", "list", "tuple", "int", "float", "str", "bool", "bytes", "bytearray", "complex"),
        *("slice", "range", "object", "Ellipsis", "NotImplemented"),
    )
)


class Stub:
    """An instance of a class that is not loaded. path: the class's full name. Its state lies in `vars()`, untouched."""

    path = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        if isinstance(state, dict):
            self.__dict__.update({k: v for k, v in state.items() if isinstance(k, str)})


def stub(path: str) -> type[Stub]:
    """A class of its own for one name, so that the name is known afterwards."""
    return type("Stub", (Stub,), {"path": path})


def named_globals(path: Path) -> set[str]:
    """Every global that a torch.save file names, in both layouts; nothing is loaded. Raises BadCheckpoint."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = next(i for i in archive.infolist() if i.filename.endswith("data.pkl"))
                if inner.file_size > _MAX_PICKLE:
                    raise BadCheckpoint(f"its pickle has {inner.file_size:,} bytes: that is no checkpoint")
                return _globals(io.BytesIO(archive.read(inner)))
        with path.open("rb") as file:
            # The old layout: magic number, version, system, the object itself.
            found: set[str] = set()
            for _ in range(4):
                found |= _globals(file)
            return found
    except (ValueError, EOFError, LookupError, StopIteration, MemoryError, OverflowError, zipfile.BadZipFile) as error:
        raise BadCheckpoint(
            f"it is no complete checkpoint: {error or type(error).__name__}", hint="upload the file again, whole"
        ) from error


def refuse_hostile(names: set[str]) -> None:
    """Raises BadCheckpoint for a pickle that names what no checkpoint needs."""
    for name in sorted(names):
        module, _, last = name.rpartition(".")
        bad = module.split(".")[0] in _HOSTILE or (module == "builtins" and last not in _BUILTINS)
        if bad:
            raise BadCheckpoint(
                f"the pickle names {name}: it is a program, not a checkpoint. Nothing of it was run",
                hint="upload a state_dict or a safetensors file from a source that you trust",
            )


def unknown(names: set[str]) -> set[str]:
    """Those that torch.load(weights_only=True) does not take by itself."""
    return {n for n in names if n not in _get_allowed_globals()}


def tensors_of(root: Stub) -> dict[str, Tensor]:
    """The state_dict of a pickled module that was never brought to life."""
    found: dict[str, Tensor] = {}
    waiting, seen = [("", root, 0)], set[int]()
    while waiting:
        prefix, module, depth = waiting.pop()
        if id(module) in seen and depth > _MAX_DEPTH:
            raise BadCheckpoint("the pickled modules contain each other")
        seen.add(id(module))
        own = vars(module)
        transient = own.get("_non_persistent_buffers_set") or set()
        for table in ("_parameters", "_buffers"):
            for name, value in (own.get(table) or {}).items():
                if isinstance(value, Tensor) and name not in transient:
                    found[f"{prefix}{name}"] = value
        if depth > _MAX_DEPTH:
            raise BadCheckpoint(f"its modules are nested deeper than {_MAX_DEPTH}")
        children = list((own.get("_modules") or {}).items())
        waiting += [(f"{prefix}{n}.", m, depth + 1) for n, m in reversed(children) if isinstance(m, Stub)]
        if len(found) > 1_000_000:
            raise BadCheckpoint("it holds more than a million tensors")
    return found


def is_module(value: Any) -> bool:
    return isinstance(value, Stub) and {"_modules", "_parameters"} <= vars(value).keys()


def _operations(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    """pickletools.genops, quiet about the odd escapes in the strings of a file that is no pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield from pickletools.genops(file)


def _globals(file: BinaryIO) -> set[str]:
    found, strings = set(), ["", ""]
    for op, argument, _ in _operations(file):
        if op.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[(module, name)]
            found.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")
        elif op.name == "STACK_GLOBAL":
            found.add(".".join(strings))
        if isinstance(argument, str) and "UNICODE" in op.name:
            strings = [strings[1], argument]
    return found
