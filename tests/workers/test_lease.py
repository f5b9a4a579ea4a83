"""The three ways in which an attempt is ended from outside, each on a real process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import until

from app.domain.records import Job, now
from app.queue import Queue
from app.settings import Settings
from app.storage.catalog import Catalog

LEASE_S = 600.0
BUSY = """
import sys, time
from pathlib import Path
from workers.lease import Lease, block_sigterm
block_sigterm()
from app.queue import Queue
from app.settings import Settings
from app.storage.catalog import Catalog
settings = Settings()
catalog = Catalog.open(settings, settings.redis_url)
scratch = Path(sys.argv[1])
scratch.mkdir()
with Lease(catalog, Queue(settings.redis_url), settings, "j1", 1, scratch):
    print("busy", flush=True)
    time.sleep(600)  # longer than any test waits: whoever ends before was ended from outside
"""


SETTLED = (
    BUSY.replace(
        'print("busy", flush=True)\n    time.sleep(600)',
        """lease.settle()
    print("busy", flush=True)
    while catalog.job("j1").status != "cancelling":
        time.sleep(0.05)
    time.sleep(1)
    try:
        lease.check()
    except Cancelled:
        print("told", flush=True)""",
    )
    .replace("import Lease,", "import Cancelled, Lease,")
    .replace("scratch):", "scratch) as lease:")
)


@pytest.fixture
def busy(settings: Settings, catalog: Catalog, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    catalog.add(Job(id="j1", kind="train", spec={"kind": "train"}, created_at=now()))
    catalog.moved("j1", was={"queued"}, to="running", attempt=1, lease_s=LEASE_S)
    quick = settings.model_copy(update={"lease_s": LEASE_S, "lease_renew_s": 0.2})
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path / "scratch")], env=quick.environ(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "busy\n"
            yield process
        finally:
            process.kill()


def test_it_keeps_the_lease_alive(busy: subprocess.Popen[str], catalog: Catalog) -> None:
    lease, half_ms = "es:lease:j1", int(LEASE_S * 500)
    for _ in range(3):
        assert catalog.redis.pexpire(lease, half_ms)
        until(lambda: catalog.redis.pttl(lease) > half_ms)  # renewed, and again
    busy.kill()
    busy.wait()
    catalog.redis.pexpire(lease, 50)
    until(lambda: not catalog.leased("j1"))


def test_a_cancelled_job_ends_in_the_middle_of_its_work(
    busy: subprocess.Popen[str], catalog: Catalog, tmp_path: Path
) -> None:
    catalog.moved("j1", was={"running"}, to="cancelling")
    until(lambda: busy.poll() is not None)
    assert catalog.job("j1").status == "cancelled"
    assert not (tmp_path / "scratch").exists()


def test_a_replaced_attempt_ends(busy: subprocess.Popen[str], catalog: Catalog) -> None:
    catalog.moved("j1", was={"running"}, to="queued", attempt=1, next_attempt=2)
    until(lambda: busy.poll() is not None)
    assert (catalog.job("j1").status, catalog.job("j1").attempt) == ("queued", 2)


def test_a_worker_that_stops_hands_its_job_back(busy: subprocess.Popen[str], catalog: Catalog, redis_url: str) -> None:
    busy.terminate()
    until(lambda: busy.poll() is not None)
    job = catalog.job("j1")
    assert (job.status, job.attempt, job.allowed_attempts) == ("queued", 2, 3)
    assert Queue(redis_url).waiting() == {"j1"}


def test_whoever_has_settled_is_told_instead_of_ended(settings: Settings, catalog: Catalog, tmp_path: Path) -> None:
    catalog.add(Job(id="j1", kind="train", spec={"kind": "train"}, created_at=now()))
    catalog.moved("j1", was={"queued"}, to="running", attempt=1, lease_s=5)
    slow = settings.model_copy(update={"lease_renew_s": 0.5})
    with subprocess.Popen(
        [sys.executable, "-c", SETTLED, str(tmp_path / "scratch")],
        env=slow.environ(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        catalog.moved("j1", was={"running"}, to="cancelling")
        assert process.stdout.readline() == "told\n"
    assert process.returncode == 0
    assert catalog.job("j1").status == "cancelling"
