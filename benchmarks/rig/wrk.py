"""Closed loop: `wrk` keeps so many connections busy. Throughput and p50 are its own; its high percentiles are not used
(wrk 4.1 'corrects' them upward)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import Ask

_DONE = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests":%d,"us":%d,"p50_us":%d,"broken":%d,"refused":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), e.connect + e.read + e.write + e.timeout, e.status))
end
"""


class Told(NamedTuple):
    """What a run gave. errors: answers that were not 2xx, and connections that broke."""

    requests: int
    per_s: float
    p50_ms: float
    errors: int


def require() -> None:
    """Raises FileNotFoundError where wrk is not installed."""
    if shutil.which("wrk") is None:
        raise FileNotFoundError("wrk is not installed: apt install wrk")


def script(ask: Ask, folder: Path) -> Path:
    """The Lua file that has wrk send one request again and again; its body lies beside it."""
    body, path = folder / "body", folder / "ask.lua"
    body.write_bytes(ask.body)
    headers = "".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}\n" for k, v in ask.headers.items())
    opened = f'local file = io.open({json.dumps(str(body))}, "rb")\nwrk.body = file:read("*a")\nfile:close()\n'
    path.write_text(f'wrk.method = "POST"\n{opened}{headers}{_DONE}')
    return path


def run(port: int, ask: Ask, concurrency: int, seconds: float, folder: Path) -> Told:
    """Raises RuntimeError when wrk fails."""
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    command += ["-s", str(script(ask, folder)), f"http://127.0.0.1:{port}{ask.path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse(done.stdout + done.stderr)


def parse(text: str) -> Told:
    """Raises RuntimeError where wrk has told nothing."""
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"wrk failed: {text[-400:]}")
    told = json.loads(lines[-1].removeprefix("RESULT "))
    good = told["requests"] - told["refused"]
    seconds = max(1, told["us"]) / 1e6
    return Told(told["requests"], good / seconds, told["p50_us"] / 1e3, told["broken"] + told["refused"])
