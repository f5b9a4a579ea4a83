"""How long runs of an engine take, learned from those that were: for Retry-After, for sharing rows out, and for runs
that are over sooner than a thread is woken."""

from __future__ import annotations

import math

_KEPT = 0.98  # of what was learned, at each further run
_LONGEST_RETRY_S = 60
_BRIEF_S = 1e-3


class Pace:
    """row_s: seconds from one row's end to the next one's in a busy engine, smoothed; 0 before the first run."""

    def __init__(self) -> None:
        self.row_s = 0.0
        self._ended = 0.0
        self._lone_s = 0.0  # of runs of a single row, smoothed
        # Decayed sums over the runs: of 1, rows, seconds, rows², rows × seconds.
        self._n = self._r = self._t = self._rr = self._rt = 0.0

    def ran(self, rows: int, started: float, ended: float, now: float) -> None:
        """Learns from a run. now: when its answers were handed out."""
        took = (now - max(started, self._ended)) / rows
        self.row_s = took if not self.row_s else 0.8 * self.row_s + 0.2 * took
        self._ended = now
        seconds = ended - started
        if rows == 1:
            self._lone_s = seconds if not self._lone_s else 0.9 * self._lone_s + 0.1 * seconds
        self._n = self._n * _KEPT + 1
        self._r = self._r * _KEPT + rows
        self._t = self._t * _KEPT + seconds
        self._rr = self._rr * _KEPT + rows * rows
        self._rt = self._rt * _KEPT + rows * seconds

    def retry_s(self, rows: int) -> int:
        """Whole seconds until `rows` rows will have gone through: at least one, at most a minute."""
        return min(_LONGEST_RETRY_S, max(1, math.ceil(rows * self.row_s)))

    def brief(self, rows: int) -> bool:
        """Whether a run of so many rows is over within a millisecond: they take at most as long as one by one."""
        return 0.0 < rows * self._lone_s <= _BRIEF_S

    def share(self, rows: int, idle: int) -> int:
        """How many of the rows that wait go to the first of `idle` instances.

        A run costs a fixed part and a part for each row: a + b × rows, fitted to the runs seen. Dividing a batch saves
        its requests time (half the rows on each of two instances) and costs the machine another a. So it is divided
        only so far that each part spends at least as long on its rows as on itself: a large network's two rows go to
        two instances, a tiny network's share a run, and a GPU, whose runs are nearly all a, is given whole batches.
        Nothing is divided before runs of different sizes have shown what they cost.
        """
        if idle < 2 or rows < 2 or self._n < 2:
            return rows
        mean_r, mean_t = self._r / self._n, self._t / self._n
        spread = self._rr / self._n - mean_r * mean_r
        slope = (self._rt / self._n - mean_r * mean_t) / spread if spread > 1e-3 * mean_r * mean_r else 0.0
        if slope <= 0:
            return rows
        least = max(0.0, mean_t - slope * mean_r) / slope
        parts = max(1, min(idle, int(rows / max(1.0, least))))
        return math.ceil(rows / parts)
