"""The verifiers that people use, on well-formed input: they accept what we sign, we accept what they sign."""

import base64
import hashlib
import hmac
import time
from datetime import UTC, datetime

import pytest
import standardwebhooks
import svix
from hypothesis import given, settings
from hypothesis import strategies as st
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret

from app.core.errors import Rejected
from app.core.signature import (
    generate_secret,
    parse_signing_keys,
    parse_verifying_keys,
    signed_headers,
    verify,
)

IDS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
SECRETS = st.binary(min_size=24, max_size=64).map(generate_secret)
# Their API takes the body as text; the official one refuses an empty body.
BODIES = st.text(st.characters(codec="utf-8"), min_size=1)
# They read the clock themselves: a margin keeps their answer from depending on when the test runs.
OFFSETS = st.integers(-290, 290)


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@given(IDS, SECRETS, st.lists(SECRETS, max_size=2), BODIES, OFFSETS)
@settings(deadline=None)
def test_they_accept_what_we_sign(
    webhook_id: str, secret: str, more: list[str], body: str, offset: int
) -> None:
    keys = parse_signing_keys(" ".join([*more, secret]))
    headers = signed_headers(webhook_id, int(time.time()) + offset, body.encode(), keys)
    svix.Webhook(secret).verify(body, headers)
    standardwebhooks.Webhook(secret).verify(body, headers, json_parse=False)
    Webhooks.validate(headers=headers, body=body, secret=WebhookSigningSecret(key=secret), tolerance=300)


@given(IDS, SECRETS, BODIES, OFFSETS)
@settings(deadline=None)
def test_we_accept_what_they_sign(webhook_id: str, secret: str, body: str, offset: int) -> None:
    now = int(time.time())
    when = datetime.fromtimestamp(now + offset, tz=UTC)
    for signature in (
        svix.Webhook(secret).sign(webhook_id, when, body),
        standardwebhooks.Webhook(secret).sign(webhook_id, when, body),
    ):
        headers = {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(now + offset),
            "webhook-signature": signature,
        }
        delivery = verify(raw(headers), body.encode(), parse_verifying_keys(secret), now=now)
        assert (delivery.webhook_id, delivery.timestamp) == (webhook_id, now + offset)
        assert delivery.body == body.encode()


@given(IDS, SECRETS, SECRETS, BODIES)
@settings(deadline=None)
def test_they_refuse_with_us(webhook_id: str, secret: str, other: str, body: str) -> None:
    now = int(time.time())
    headers = signed_headers(webhook_id, now, body.encode(), parse_signing_keys(secret))
    if secret == other:
        return
    with pytest.raises(Rejected):
        verify(raw(headers), body.encode(), parse_verifying_keys(other), now=now)
    with pytest.raises(svix.WebhookVerificationError):
        svix.Webhook(other).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(other).verify(body, headers, json_parse=False)
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(headers=headers, body=body, secret=WebhookSigningSecret(key=other))


@given(IDS, st.binary(min_size=24, max_size=64), st.binary(), st.integers(0, 10**12 - 1))
@settings(deadline=None)
def test_the_scheme_written_out_by_hand_gives_what_we_sign(
    webhook_id: str, secret: bytes, body: bytes, timestamp: int
) -> None:
    signed = webhook_id.encode() + b"." + str(timestamp).encode() + b"." + body
    by_hand = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    headers = signed_headers(webhook_id, timestamp, body, parse_signing_keys(generate_secret(secret)))
    assert headers["webhook-signature"] == f"v1,{by_hand}"
