"""What TensorRT says: it answers failures with None or False, and the reason stands in its log alone.

Works on TensorRT 8.6 to 11 and Python 3.10, and imports nothing of either.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from typing import Any

log = logging.getLogger("enginesmith.tensorrt")
_KEPT = 200
_NOISE = re.compile(r"--- (?:Begin|End) node ---|^Node name|catchCudaError|^While parsing node number|^\s*$|error 35")


def listener(trt: Any) -> Any:
    """A logger for a Builder, a parser or a Runtime, which must outlive them. `said()` gives the errors since the call
    before, on one line. It may be called from TensorRT's own threads."""

    class Listener(trt.ILogger):  # type: ignore[misc]  # met when the library is there
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._turn = threading.Lock()
            self._errors: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                with self._turn:
                    self._errors.append(message)
                log.info("TensorRT: %s", message)

        def said(self) -> str:
            with self._turn:
                found = list(self._errors)
                self._errors.clear()
            return words(found)

    return Listener()


def words(messages: list[str], limit: int = 600) -> str:
    """Messages without source places and repetitions, on one line."""
    found: dict[str, None] = {}
    for message in messages:
        for line in message.splitlines():
            text = plain(line)
            if text and not any(text in other for other in found):
                found[text] = None
    raw = " ".join(" ".join(messages).split())  # where all of it is noise, that is what there is
    return ("; ".join(found) or raw)[:limit] or "TensorRT gave no reason"


def plain(line: str) -> str:
    """One line of TensorRT's without where in its source it was written; empty for one that says nothing."""
    if _NOISE.search(line):
        return ""
    line = re.sub(r"^(?:\d+: )?\[\w+\.cpp\S*\] ", "", line.strip())
    line = re.sub(r"^\S+\.cpp(?::\d+|::\w+::\d+)?: ?(?:ERROR: )?", "", line)
    line = re.sub(r"(?:ERROR: )?\S+\.cpp:\d+ In function \w+:?", "", line)
    line = re.sub(r"\(?\bIn [\w:~<>]+ at \S+\.(?:cpp|h):\d+\)?", "", line)
    line = re.sub(r"^\[\d+\] (?:Assertion failed: )?", "", line.strip())
    if _NOISE.search(line):
        return ""
    opening, closing = line.count("("), line.count(")")
    return (line.rstrip(" .") + ")" * max(0, opening - closing)).strip()
