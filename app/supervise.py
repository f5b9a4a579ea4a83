"""`enginesmith serve`: runs the store, the app and the workers as children, and ends them all together."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import socket
import time
import urllib.request
from types import FrameType

from app import tracing
from app.api.key_text import guessable
from app.embedded import EmbeddedStore, refuses, short_path
from app.errors import Conflict, Internal
from app.processes import Child
from app.settings import Settings
from app.storage.artifacts import Artifacts
from app.storage.keys import check_exposure, loopback

log = logging.getLogger("enginesmith.serve")
LIVE_S = 60.0
READY_S = 10.0
STOP_S = 25.0


def serve(settings: Settings, workers: int, http_processes: int = 1) -> int:
    """Runs until SIGTERM or SIGINT; the exit code. Prints one line with the URL when the service is ready.

    http_processes: with more than one the engines get a process of their own (docs/adr/0010).
    """
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)

    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, stop)
    _check_redis_url(settings)
    _check_store_url(settings)
    tracing.check(settings)
    check_exposure(settings)
    if not loopback(settings.host) and (short := guessable(settings.api_keys)):
        log.warning("%d of ENGINESMITH_API_KEYS can be guessed: `enginesmith keys create` makes long ones", short)
    listeners = listen(settings.host, settings.port, http_processes)
    host, port = listeners[0].getsockname()[:2]
    managing: list[socket.socket] = []
    if settings.manage_port is not None:
        managing = listen(settings.manage_host or settings.host, settings.manage_port, http_processes)
    store = None if settings.redis_url else EmbeddedStore(settings.data)
    children: list[Child] = []
    try:
        redis_url = settings.redis_url or (store.start() if store else "")
        if store:  # this data folder is ours alone: what lies there was left by an app that was killed
            for left in settings.scratch.glob("dataset-*"):
                shutil.rmtree(left, ignore_errors=True)
        chosen = {"redis_url": redis_url, "port": port, "data": settings.data.absolute()}
        if managing:
            chosen["manage_port"] = managing[0].getsockname()[1]
        if http_processes > 1:
            chosen["engines_socket"] = short_path(settings.data, "engines.sock")
        environ = settings.model_copy(update=chosen).environ()
        if http_processes > 1:
            children.append(Child("engines", ["-m", "app", "engines"], environ))
        for number, listener in enumerate(listeners):
            fds = [of.fileno() for of in (listener, *managing[number : number + 1])]
            words = [word for fd in fds for word in ("--fd", str(fd))]
            children.append(Child("app", ["-m", "app", "http", *words], environ, keep=tuple(fds)))
        if workers:
            children.append(Child("workers", ["-m", "workers", "--count", str(workers)], environ))
        for child in children:
            child.start()
        reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        address = f"http://{_shown(reach)}:{port}"
        if not _wait_until("live", LIVE_S, address, children, stopping) and not stopping:
            raise Internal(f"the app did not answer within {LIVE_S:.0f} s", hint="its log is above")
        # Deployments of an earlier run are served again; one that cannot be must not keep the others waiting.
        _wait_until("ready", READY_S, address, children, stopping)
        if not stopping:
            print(f"Enginesmith is ready at http://{_shown(host)}:{port}", flush=True)  # noqa: T201
            if managing:
                print(f"It is managed at http://{_at(managing[0])}", flush=True)  # noqa: T201
        while not stopping:
            time.sleep(0.2)
            if store and not store.alive():
                log.error("the embedded store died; starting it again")
                if not store.restart():
                    log.error("it has not started; its log: %s", store.folder / "valkey.log")
                    time.sleep(1.0)  # it may die at once, of a full disk: five starts a second would help nobody
            for child in children:
                child.tend()
    finally:
        # A socket goes on to take connections in for as long as one process has it; nobody would accept them.
        for listener in (*listeners, *managing):
            listener.close()
        # The engines last: fronts that drain still need them.
        deadline = time.monotonic() + STOP_S
        for ending in ([c for c in children if c.name != "engines"], [c for c in children if c.name == "engines"]):
            for child in reversed(ending):
                child.ask_to_stop()
            for child in ending:
                child.end(deadline)
        if store:
            store.stop()
    return 0


def _check_store_url(settings: Settings) -> None:
    """Raises Conflict for an artifact store that cannot be."""
    if settings.store_url:
        try:
            Artifacts(settings.store_url)
        except Exception as error:  # obstore's errors for this have no common class
            raise Conflict(
                f"ENGINESMITH_STORE_URL is no artifact store: {error}".splitlines()[0],
                code="bad_store_url",
                hint="say s3://bucket/prefix, or file:///folder",
            ) from None


def _check_redis_url(settings: Settings) -> None:
    """Raises Conflict for a URL that no server can have. Where none answers yet, the app and the workers wait."""
    try:
        refused = settings.redis_url is not None and refuses(settings.redis_url)
    except ValueError as error:
        raise Conflict(
            f"ENGINESMITH_REDIS_URL is wrong: {error}",
            code="bad_redis_url",
            hint="redis://:PASSWORD@host:6379/0; characters such as / and # in a password are percent-encoded",
        ) from None
    if refused:
        raise Conflict(
            "Redis refuses the password of this service",
            code="redis_refuses",
            hint="say it in ENGINESMITH_REDIS_URL: redis://:PASSWORD@host:6379/0, or redis://USER:PASSWORD@…",
        )


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """A listening socket per process of HTTP: the kernel then deals connections out evenly, where one socket shared by
    all would have whoever wakes first take everything that waits. Kept open here, so that a front that is started
    again finds its own, with the connections that came meanwhile."""
    listeners: list[socket.socket] = []
    named = port
    try:
        if count > 1 and port:
            _check_free(host, port)
        for _ in range(count):
            listener = socket.socket(_family(host), socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            port = listener.getsockname()[1]
            listener.listen(2048)
            listener.set_inheritable(True)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise Conflict(
            f"cannot listen on {host}:{named}: {error.strerror or error}",
            code="address_in_use",
            hint="another program uses it: name another with --port, or --port 0 for a free one",
        ) from None
    return listeners


def _check_free(host: str, port: int) -> None:
    """Raises OSError where somebody else listens: with SO_REUSEPORT another service of ours would not be noticed."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _wait_until(state: str, patience_s: float, address: str, children: list[Child], stopping: list[int]) -> bool:
    """Whether /healthz/{state} has answered 200 within that time. Raises Internal when the app dies instead."""
    deadline = time.monotonic() + patience_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and not stopping:
        if any(child.dead and child.name != "workers" for child in children):
            raise Internal("the app did not start", hint="its log is above")
        with contextlib.suppress(OSError), opener.open(f"{address}/healthz/{state}", timeout=2):
            return True
        time.sleep(0.05)
    return False


def _at(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{_shown(host)}:{port}"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
