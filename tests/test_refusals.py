"""What cannot be started says so in a line and a hint, never with a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis_servers import PASSWORD, Server

ROOT = Path(__file__).resolve().parents[1]
NO_REDIS = {"ENGINESMITH_REDIS_URL": "nonsense://x"}


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "said"),
    [
        (("app", "serve", "--port", "0", "--data", "{file}"), {}, 1, "cannot be used"),
        (("app", "serve", "--port", "0"), NO_REDIS, 1, "ENGINESMITH_REDIS_URL is wrong"),
        (("app", "serve", "--port", "0"), {"ENGINESMITH_STORE_URL": "ftp://x"}, 1, "no artifact store"),
        (("workers",), NO_REDIS, 2, "the settings are wrong"),
        (("workers",), {"ENGINESMITH_LEASE_S": "soon"}, 2, "ENGINESMITH_LEASE_S: Input should be"),
    ],
)
def test_it_refuses(tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str], code: int, said: str) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", *(word.format(file=tmp_path / "file") for word in arguments)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")} | environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_redis_that_refuses_the_password(tmp_path: Path) -> None:
    server = Server(tmp_path / "redis", f'requirepass "{PASSWORD}"')
    server.wait()
    environ = {"ENGINESMITH_REDIS_URL": f"redis://:wrong@127.0.0.1:{server.port}/0"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "app", "serve", "--port", "0", "--data", tmp_path / "data"],
            env=os.environ | environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.kill()
    assert (done.returncode, done.stdout) == (1, "")
    assert "Redis refuses the password" in done.stderr
    assert "wrong" not in done.stderr


def test_a_setting_that_is_none_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", "0", "--data", tmp_path / "data", "--host", "0.0.0.0"],
        env={k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")} | {"ENGINESMITH_PROT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ENGINESMITH_PROT is no setting: is ENGINESMITH_PORT meant?" in done.stderr
