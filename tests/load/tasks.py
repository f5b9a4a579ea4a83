"""What the sandbox tests let a child do: crash, hoard, linger, talk too much. Ways out are in `escapes`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from app.errors import BadArchitecture


def environment(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"environment": dict(os.environ), "cwd": str(Path.cwd())}


def abort(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    os.abort()


def leave(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    os._exit(3)


def hoard(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": len(bytearray(int(arguments["bytes"])))}


def hoard_tensors(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {"elements": torch.ones(int(arguments["bytes"]) // 4).numel()}


def spin(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    while True:
        pass


def sleep(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def write(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    with (folder / "large").open("wb") as file:
        file.truncate(int(arguments["bytes"]))
        file.seek(int(arguments["bytes"]))
        file.write(b"x")
    return {}


def shout(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"text": "x" * int(arguments["bytes"])}


def refuse(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    raise BadArchitecture("no", code="very_bad", hint="do better", errors=[{"loc": ["a"], "msg": "b"}])


def chatter(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    os.write(1, b"noise on stdout" * 100_000)
    return {"said": arguments}
