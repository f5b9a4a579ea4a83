"""The end of a process: whoever has connected is answered, and whoever comes later is refused at once."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable

log = logging.getLogger("enginesmith.ending")
_asked = threading.Event()
# How long a connection is kept on which no request is being answered, for one that may be on its way.
FIRST_S = 0.5  # none has come yet
NEXT_S = 0.1
_MOST = 4096  # taken from one queue, which fills on while another process has it too


def end_this_process(why: str) -> None:
    """Asks this very process, once, to stop in order, as its supervisor would, which then starts it again."""
    if not _asked.is_set():
        _asked.set()
        log.critical("this process ends, to be started again: %s", why)
        os.kill(os.getpid(), signal.SIGTERM)


def close_listeners(listeners: Iterable[int], close: Callable[[], None]) -> list[socket.socket]:
    """The connections that waited to be accepted; with its last descriptor a socket's queue is reset.

    listeners: the descriptors that `close` closes.
    """
    held = [socket.socket(fileno=os.dup(fd)) for fd in listeners]
    close()
    found: list[socket.socket] = []
    for listener in held:
        with listener:
            listener.setblocking(False)
            found += _accepted(listener)
    return found


def _accepted(listener: socket.socket) -> list[socket.socket]:
    found: list[socket.socket] = []
    while len(found) < _MOST:
        try:
            connection, _ = listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # BlockingIOError: nobody waits
            break
        connection.setblocking(False)
        found.append(connection)
    return found
