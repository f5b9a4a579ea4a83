"""The stub service, and a client of it that does not sleep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from enginesmith import Client, cli
from enginesmith.transport import Transport

from .stub import Stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


@pytest.fixture
def slept() -> list[float]:
    """How long the client would have slept between its tries."""
    return []


@pytest.fixture
def client(stub: Stub, slept: list[float]) -> Iterator[Client]:
    with Client(transport=Transport(stub.url, "secret", sleep=slept.append)) as found:
        yield found


@pytest.fixture
def run(stub: Stub, capfd: pytest.CaptureFixture[str]):
    """Runs a command against the stub: its exit code, stdout and stderr."""

    def command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--url", stub.url, *words])
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return command
