"""URLs of Redis as production has it: passwords, TLS, and a master that Sentinels know."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from redis_servers import PASSWORD, Server, Tls, Watched, until, watched

from app.embedded import answers
from app.errors import Unavailable
from app.storage.dial import dial
from app.storage.redis import connect


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Tls]:
    server = Server(tmp_path / "server", f'requirepass "{PASSWORD}"')
    server.wait()
    front = Tls(tmp_path / "tls", server.port)
    yield front
    front.close()
    server.kill()


def test_tls_and_a_password_in_the_url(tls: Tls) -> None:
    url = f"rediss://:{quote(PASSWORD, safe='')}@127.0.0.1:{tls.port}/2?ssl_ca_certs={tls.authority}"
    client = connect(url, patience_s=0.5)
    client.set("k", "v")
    assert client.get("k") == "v"
    assert answers(url)
    with pytest.raises(Unavailable):  # nobody whom we trust has signed it
        connect(url.partition("?")[0], patience_s=0.1).ping()
    assert not answers(url.replace(quote(PASSWORD, safe=""), "wrong"))


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path / "watched") as found:
        yield found


def test_who_is_master_is_asked_anew_when_it_is_gone(sentinels: Watched) -> None:
    client = connect(sentinels.url, patience_s=20)
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    assert script(keys=["n"]) == 1
    until(lambda: sentinels.replica.client().get("n") == "1", 5)
    sentinels.master.kill()
    began = time.monotonic()
    assert script(keys=["n"]) == 2  # waits for the other to become master, and finds what was written before
    assert time.monotonic() - began < 20
    assert sentinels.replica.client().get("n") == "2"


@pytest.mark.slow
def test_one_sentinel_is_enough_and_none_is_unavailable(sentinels: Watched) -> None:
    for sentinel in sentinels.sentinels[:2]:
        sentinel.kill()
    assert connect(sentinels.url, patience_s=2).ping()
    sentinels.sentinels[2].kill()
    began = time.monotonic()
    with pytest.raises(Unavailable):
        connect(sentinels.url, patience_s=2).ping()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "url", ["redis+sentinel://one:1", "redis+sentinel:///mymaster", "redis+sentinel://one/mymaster/zero", "http://one"]
)
def test_what_no_server_can_have_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        dial(url, redis.Redis)
