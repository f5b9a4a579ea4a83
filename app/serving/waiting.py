"""The requests that wait for one engine: in order of arrival, by priority, those that may share a run together."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import numpy.typing as npt

from app.runtimes import Arrays

Outputs = dict[str, npt.NDArray[Any]]
MIDDLE, LAST = 5, 9  # levels of priority


def level_of(priority: int) -> int:
    """Triton's rule: 1 goes first, larger numbers later (from 9 on alike); 0 is the usual level, the middle one, 5."""
    return MIDDLE if priority < 1 else min(priority, LAST)


class Stages:
    """The moments of one request (time.monotonic; 0: not reached), and the batch that it was in."""

    __slots__ = ("answered", "came", "ended", "gathered", "requests", "rows", "started")

    def __init__(self) -> None:
        self.came = self.started = self.gathered = self.ended = self.answered = 0.0
        self.rows = self.requests = 0


class Item:
    """A request. kind: requests of the same kind may share a run; None where all are of one kind."""

    __slots__ = ("answer", "came", "deadline", "inputs", "kind", "level", "nbytes", "rows", "stages", "timer", "waits")

    def __init__(
        self,
        inputs: Arrays,
        rows: int,
        nbytes: int,
        kind: object,
        answer: asyncio.Future[Outputs],
        *,
        level: int = MIDDLE,
        deadline: float | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.nbytes = nbytes
        self.kind = kind
        self.answer = answer
        self.level = level
        self.deadline = deadline
        self.stages = stages
        self.timer: asyncio.Handle | None = None
        self.waits = False
        self.came = time.monotonic()


# An OrderedDict is a linked list with a look-up: both ends and the middle are reached in constant time.
_Line = OrderedDict[Item, None]


class _Level:
    """One priority. order: everybody. kinds: the same by kind, where there are several."""

    __slots__ = ("kinds", "order")

    def __init__(self) -> None:
        self.order: _Line = OrderedDict()
        self.kinds: dict[object, _Line] = {}

    def line(self, kind: object) -> _Line | None:
        return self.order if kind is None else self.kinds.get(kind)

    def add(self, item: Item) -> None:
        self.order[item] = None
        if item.kind is not None:
            self.kinds.setdefault(item.kind, OrderedDict())[item] = None

    def remove(self, item: Item) -> None:
        del self.order[item]
        if item.kind is not None:
            line = self.kinds[item.kind]
            del line[item]
            if not line:
                del self.kinds[item.kind]


class Waiting:
    """A queue of which a batch is taken in time that grows with the batch, and any request in constant time."""

    def __init__(self) -> None:
        self.rows = 0
        self.nbytes = 0
        self.requests = 0
        self._levels: dict[int, _Level] = {MIDDLE: _Level()}
        self._ranked = list(self._levels.values())

    def add(self, item: Item) -> None:
        level = self._levels.get(item.level)
        if level is None:
            self._levels[item.level] = level = _Level()
            self._ranked = [self._levels[n] for n in sorted(self._levels)]
        level.add(item)
        item.waits = True
        self.rows += item.rows
        self.nbytes += item.nbytes
        self.requests += 1

    def remove(self, item: Item) -> None:
        """Takes out one that waits."""
        self._levels[item.level].remove(item)
        self._left(item)

    def head(self) -> Item | None:
        """Who goes first: the oldest of the highest priority."""
        for level in self._ranked:
            if level.order:
                return next(iter(level.order))
        return None

    def rows_like(self, item: Item, most: int) -> int:
        """Rows that could share its run, counted up to `most`."""
        rows = 0
        for level in self._ranked:
            for other in level.line(item.kind) or ():
                rows += other.rows
                if rows >= most:
                    return rows
        return rows

    def take(self, most: int, sizes: Collection[int] | None = None) -> list[Item]:
        """The next batch: who goes first, and those behind of the same kind, up to `most` rows (the first may have
        more). One that does not fit ends the batch and goes first next time: it must not starve behind smaller ones.

        sizes: the batch is cut back to one of these sizes where a beginning of at least half of it has one; the rest
        goes first next time.
        """
        head = self.head()
        if head is None:
            return []
        batch: list[Item] = []
        rows = whole = cut = 0
        for level in self._ranked:
            line = level.line(head.kind)
            while line:
                item = next(iter(line))
                if batch and rows + item.rows > most:
                    break
                level.remove(item)
                batch.append(item)
                rows += item.rows
                if sizes is not None and rows in sizes:
                    whole, cut = rows, len(batch)
            else:
                continue  # no more of the kind on this level: those of the next one may fill the batch
            break
        if cut and rows > whole >= rows / 2:
            self._put_back(batch[cut:])
            del batch[cut:]
        for item in batch:
            self._left(item)
        return batch

    def clear(self) -> list[Item]:
        """Everybody, taken out."""
        found = [item for level in self._ranked for item in level.order]
        for item in found:
            self.remove(item)
        return found

    def _put_back(self, items: list[Item]) -> None:
        for item in reversed(items):
            level = self._levels[item.level]
            level.add(item)
            level.order.move_to_end(item, last=False)
            if item.kind is not None:
                level.kinds[item.kind].move_to_end(item, last=False)

    def _left(self, item: Item) -> None:
        item.waits = False
        self.rows -= item.rows
        self.nbytes -= item.nbytes
        self.requests -= 1
