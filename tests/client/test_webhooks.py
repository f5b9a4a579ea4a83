"""What a receiver believes."""

from __future__ import annotations

import pytest
from enginesmith import BadSignature, verify_webhook

from app.domain.webhooks import signature

BODY = b'{"id":"1","event":"ping","created_at":"2026-01-05T09:00:00.000Z","job":null}'
SECRET = "whsec_0123456789abcdef"
AT = 1_767_600_000


def test_what_the_service_has_signed() -> None:
    header = signature(SECRET, BODY, AT)
    assert verify_webhook(BODY, header, SECRET, at=AT + 299)["event"] == "ping"
    assert verify_webhook(BODY, header, SECRET, tolerance_s=1000, at=AT - 900)["id"] == "1"
    two = f"{header},v1={'0' * 64}"  # a secret is being replaced
    assert verify_webhook(BODY, two, SECRET, at=AT)


def test_a_fixed_example() -> None:
    """What other languages are to compute: printf '%s' "$t.$body" | openssl dgst -sha256 -hmac "$secret"."""
    known = "d16d41b94d3dda1dc62562839d778d8ca1642d401a09e83c8d93752506780685"
    assert signature("whsec_0123456789abcdef", b"{}", AT) == f"t=1767600000,v1={known}"


@pytest.mark.parametrize(
    ("header", "body", "at", "why"),
    [
        (None, BODY, AT, "no signature"),
        ("", BODY, AT, "no signature"),
        ("v1=" + "0" * 64, BODY, AT, "no signature"),
        (f"t={AT}", BODY, AT, "no signature"),
        (f"t={AT},t={AT},v1=" + "0" * 64, BODY, AT, "no signature"),
        (f"t={AT},v1=" + "0" * 64, BODY, AT, "does not fit"),
        (signature(SECRET, BODY, AT).replace("t=1767600000", "t=1767600001"), BODY, AT, "does not fit"),
        (signature("another-secret-of-mine", BODY, AT), BODY, AT, "does not fit"),
        (signature(SECRET, BODY, AT), BODY + b" ", AT, "does not fit"),
        (signature(SECRET, BODY, AT), BODY, AT + 301, "301 s ago"),
        (signature(SECRET, BODY, AT), BODY, AT - 301, "in the future"),
        (signature(SECRET, b"[]", AT), b"[]", AT, "no event"),
        (signature(SECRET, b"{", AT), b"{", AT, "no event"),
    ],
)
def test_what_is_not_believed(header: str | None, body: bytes, at: int, why: str) -> None:
    with pytest.raises(BadSignature, match=why):
        verify_webhook(body, header, SECRET, at=at)
