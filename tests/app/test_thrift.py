"""When memory that was freed is given back: once there is much of it, and nobody holds much any more."""

from __future__ import annotations

from collections.abc import Callable

from app.settings import MiB
from app.thrift import Thrift


class Process:
    """Its memory is what the test says; giving back leaves `needed`."""

    def __init__(self) -> None:
        self.resident = self.needed = 100 * MiB
        self.given_back = 0
        self.thrift = Thrift(self.spend, lambda: self.resident, self.give_back)

    def spend(self, work: Callable[[], None]) -> None:
        work()

    def give_back(self) -> None:
        self.given_back += 1
        self.resident = self.needed


def test_what_a_burst_leaves_behind_is_given_back() -> None:
    process = Process()
    process.thrift.look(0, 0.0)
    process.resident = 400 * MiB
    process.thrift.look(300 * MiB, 1.0)  # it is in use
    assert process.given_back == 0
    process.thrift.look(0, 2.0)
    assert (process.given_back, process.resident) == (1, 100 * MiB)
    process.resident = 130 * MiB  # a little is needed again soon
    process.thrift.look(0, 100.0)
    assert process.given_back == 1


def test_what_is_needed_is_let_be() -> None:
    process = Process()
    process.thrift.look(0, 0.0)
    process.resident = process.needed = 900 * MiB  # an engine was loaded
    for second in range(1, 60):
        process.thrift.look(0, float(second))
    assert 1 <= process.given_back <= 5  # with longer and longer pauses
    before = process.given_back
    process.resident = 2000 * MiB
    process.thrift.look(0, 66.0)
    assert (process.given_back, process.resident) == (before + 1, 900 * MiB)


def test_what_was_on_its_way_out_is_given_back_later() -> None:
    process = Process()
    process.thrift.look(0, 0.0)
    process.resident = process.needed = 700 * MiB
    process.thrift.look(0, 1.0)
    process.needed = 100 * MiB  # and nothing more comes
    for second in range(2, 20):
        process.thrift.look(0, float(second))
    assert process.resident == 100 * MiB


def test_not_again_and_again() -> None:
    process = Process()
    process.thrift.look(0, 0.0)
    for tick in range(100):  # ten seconds of requests that come and go
        process.resident = 400 * MiB
        process.thrift.look(0, 1 + tick / 10)
        process.resident = 100 * MiB
        process.thrift.look(0, 1 + tick / 10)
    assert process.given_back <= 3
