"""API keys lie in the store: made once, revoked for good, and a damaged one keeps no other out."""

from __future__ import annotations

import pytest

from app.domain.keys import Limits, make
from app.storage.artifacts import Artifacts
from app.storage.keys import put_key, read_keys, revoke_key


def test_keys_are_made_and_revoked(artifacts: Artifacts) -> None:
    assert not read_keys(artifacts).any
    first, second = (make(name, ("predict",), Limits())[0] for name in ("first", "second"))
    put_key(artifacts, first)
    put_key(artifacts, second)
    with pytest.raises(FileExistsError):
        put_key(artifacts, first.but(name="another"))
    artifacts.put_bytes(b"{", "keys/damaged.json")
    revoked = revoke_key(artifacts, "first")
    assert revoked.revoked_at
    kept = read_keys(artifacts)
    assert {key.id: key for key in kept.keys} == {first.id: revoked, second.id: second}
    assert kept.damaged == ["keys/damaged.json"]
