"""What the sandbox tests let a child do: everything that a hostile file might, had it taken the process over."""

from __future__ import annotations

import os
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

from app.errors import BadArchitecture


def attempts(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Which of a list of misdeeds succeeded."""
    outside = Path(arguments["outside"])

    def done(step: Any) -> bool:
        try:
            step()
        except Exception:
            return False
        return True

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                outside.joinpath("forked").write_text("x")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    return {
        "write_inside": done(lambda: (folder / "inside").write_text("x")),
        "write_outside": done(lambda: (outside / "canary").write_text("x")),
        "write_outside_from_a_child": done(fork) and (outside / "forked").exists(),
        "read_outside": done(lambda: (outside / "secret").read_text()),
        "read_through_a_link": done(
            lambda: ((folder / "l").symlink_to(outside), (folder / "l" / "secret").read_text())
        ),
        "read_our_parents_memory": done(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
        "unix_socket": done(lambda: socket.socket(socket.AF_UNIX).connect(str(outside / "socket"))),
        "tcp": done(lambda: socket.create_connection(("127.0.0.1", int(arguments["port"])), timeout=2)),
        "http": done(lambda: urllib.request.urlopen(f"http://127.0.0.1:{arguments['port']}", timeout=2)),
        "signal_our_parent": done(lambda: os.kill(os.getppid(), 0)),
        "environment": sorted(k for k in os.environ if "ENGINESMITH" in k or "proxy" in k.lower()),
        "cwd": str(Path.cwd()),
    }


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
