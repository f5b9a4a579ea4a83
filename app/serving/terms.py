"""A served version as /predict meets it: what would otherwise be worked out again for every request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from app.domain.tensors import DTYPES
from app.serving import arrays, wire
from app.serving.decoding import Decoding
from app.serving.wire import Asked, Kind

if TYPE_CHECKING:
    from app.serving.served import ServedLane

_KEPT = 64
_HEAD = 128  # bytes: what numpy.save pads the header of an ordinary array to


class Terms:
    """headers: those of an answer, by its kind. row_bytes: what a row takes, so far as it is known. Everything that is
    kept is bounded: a client that varies its headers gains nothing."""

    __slots__ = ("_answers", "_every", "_heads", "_kinds", "_lone", "decoding", "headers", "row_bytes", "version")

    def __init__(self, lane: ServedLane) -> None:
        self.version = version = lane.version
        ref = version.ref.encode()
        self.headers = {
            kind: [(b"content-type", media.encode()), (b"enginesmith-model", ref)]
            for kind, media in wire.ANSWERS.items()
        }
        inputs = version.signature.inputs
        dtype = DTYPES.get(inputs[0].dtype)
        self._lone = (
            (inputs[0].name, dtype) if len(inputs) == 1 and dtype is not None and dtype.kind in "biuf" else None
        )
        self.decoding = Decoding(version)
        self.row_bytes = sum(
            math.prod(t.shape[1:]) * d.itemsize for t in inputs if -1 not in t.shape[1:] and (d := DTYPES.get(t.dtype))
        )
        self._every = wire.selected(None, version.signature)
        self._kinds: dict[bytes, Kind] = {}
        self._answers: dict[tuple[bytes | None, Kind, int], str] = {}
        self._heads: dict[bytes, tuple[tuple[int, ...], int]] = {}

    def kind(self, content_type: bytes) -> Kind:
        """See wire.body_kind."""
        try:
            return self._kinds[content_type]
        except KeyError:
            found = wire.body_kind(content_type.decode("latin-1"), self.version)
            if len(self._kinds) < _KEPT:
                self._kinds[content_type] = found
            return found

    def answer_kind(self, accept: bytes | None, body: Kind, outputs: int) -> str:
        """See wire.answer_kind."""
        key = (accept, body, outputs)
        try:
            return self._answers[key]
        except KeyError:
            found = wire.answer_kind(None if accept is None else accept.decode("latin-1"), body, outputs)
            if len(self._answers) < _KEPT:
                self._answers[key] = found
            return found

    def npy(self, body: bytes) -> Asked | None:
        """The array of a body whose header was found right before (see `learn`); None for any other."""
        known = self._heads.get(body[:_HEAD])
        if known is None or self._lone is None:
            return None
        shape, size = known
        name, dtype = self._lone
        if len(body) != size:
            return None
        array = np.ndarray(shape, dtype, body, _HEAD)
        wire.require_finite(name, array)
        return Asked({name: array}, self._every)

    def learn(self, body: bytes) -> None:
        """Keeps in mind the header of an .npy that fits the signature."""
        if self._lone is None or len(self._heads) >= _KEPT:
            return
        dtype, shape, fortran, start = arrays.header(body)
        if start == _HEAD and not fortran and dtype == self._lone[1]:
            self._heads[body[:_HEAD]] = (shape, len(body))


_terms: WeakKeyDictionary[ServedLane, Terms] = WeakKeyDictionary()


def terms_of(lane: ServedLane) -> Terms:
    """The terms of a lane; made once."""
    found = _terms.get(lane)
    if found is None:
        found = _terms[lane] = Terms(lane)
    return found
