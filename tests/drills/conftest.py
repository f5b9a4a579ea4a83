"""A service of a drill's own, as its users start it, without workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Service, start_service

from .telling import Results, Tell, teller

Start = Callable[..., Service]
RESULTS = Results(Path(os.environ["DRILLS_REPORT"])) if "DRILLS_REPORT" in os.environ else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if RESULTS is not None and "/drills/" in report.nodeid:
        RESULTS.add(report)
        RESULTS.write()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """start(processes=1, workers=0, **environ): ended with the test, when it is asked to."""
    started: list[Service] = []

    def make(processes: int = 1, workers: int = 0, **environ: Any) -> Service:
        arguments = ("--http-processes", str(processes)) if processes > 1 else ()
        service = start_service(tmp_path_factory.mktemp("drill"), workers=workers, arguments=arguments, **environ)
        started.append(service)
        return service

    yield make
    codes = [service.stop() for service in started]
    assert set(codes) <= {0}


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    return teller(request)
