"""The keys that Replicate's deliveries are verified with: configured, or fetched with the token.

What was fetched stays in memory. It is fetched again when a signature does not fit, so that a secret can be
changed at Replicate without a restart here.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from app.core.errors import OutkeepError, Permanent, Transient
from app.core.findings import Finding, secret_missing
from app.core.signature import VerifyingKey, parse_verifying_keys
from app.settings import Settings
from app.telemetry import logs as telemetry
from app.telemetry.redaction import spellings

FIRST_TIMEOUT = 10.0
"""Seconds that a fetch may take while there is no key yet: nobody waits for it."""

TIMEOUT = 2.0
"""Seconds that a delivery waits for a fetch."""

BACKOFF = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Seconds between the first fetches; the last one goes on."""

RETRY_AFTER = 5
SECRET_MISSING = "secret_missing"  # noqa: S105

Fetch = Callable[[float], Awaitable[str]]
"""From a time-out in seconds to the secret; raises `OutkeepError`."""

log = logging.getLogger("outkeep.receiver")


class KeyRing:
    """For one event loop. Without a `fetch` its keys stay what they are."""

    def __init__(
        self, keys: Sequence[VerifyingKey] = (), fetch: Fetch | None = None, *, again: float = 0.0
    ) -> None:
        """For the sake of a signature that does not fit, fetch every `again` seconds at most."""
        self.keys = tuple(keys)
        self._fetch = fetch
        self._again = again
        self._asked = -again
        self._fetching: asyncio.Task[None] | None = None
        self._trouble: OutkeepError | None = None

    def require(self) -> tuple[VerifyingKey, ...]:
        """The keys; raises `Transient` (`secret_missing`) while there are none."""
        if not self.keys:
            message = "the webhook secret is not known yet; send it again"
            raise Transient(SECRET_MISSING, message, retry_after=RETRY_AFTER)
        return self.keys

    async def renewed(self, used: tuple[VerifyingKey, ...]) -> bool:
        """Whether there are other keys than those that did not fit, if need be after asking for them."""
        if self._fetch is None:
            return False
        is_due = time.monotonic() - self._asked >= self._again
        if self.keys == used and (is_due or self._fetching is not None):
            await self._refresh(TIMEOUT)
        return self.keys != used

    async def fill(self) -> None:
        """Fetch the first keys, however long it takes."""
        tries = 0
        while self._fetch is not None and not self.keys:
            await self._refresh(FIRST_TIMEOUT)
            if not self.keys:
                await asyncio.sleep(BACKOFF[min(tries, len(BACKOFF) - 1)])
                tries += 1

    def findings(self) -> list[Finding]:
        """What keeps deliveries from being verified."""
        if self.keys:
            return []
        return [secret_missing(self._trouble.message if self._trouble else None)]

    async def _refresh(self, timeout: float) -> None:  # noqa: ASYNC109 - the API's
        """One fetch for all who ask while it lasts; nobody waits longer than for a fetch of their own."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._take(timeout))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._fetching), timeout)

    async def _take(self, timeout: float) -> None:  # noqa: ASYNC109
        assert self._fetch is not None
        try:
            secret = await self._fetch(timeout)
            telemetry.hide(spellings(secret))
            keys = parse_verifying_keys(secret)
            if keys != self.keys:
                log.info("the webhook secret was fetched")
            self.keys, self._trouble = keys, None
        except OutkeepError as error:
            self._complain(error)
            self._trouble = error
        finally:
            self._asked = time.monotonic()
            self._fetching = None

    def _complain(self, error: OutkeepError) -> None:
        """Say once what is wrong, as long as that does not change."""
        if self._trouble is not None and self._trouble.code == error.code:
            return
        level = logging.ERROR if isinstance(error, Permanent) else logging.WARNING
        facts = {"code": error.code}
        if self.keys:
            log.log(level, "the webhook secret cannot be fetched again: %s", error.message, extra=facts)
        else:
            log.log(
                level,
                "the webhook secret cannot be fetched, deliveries wait for it: %s",
                error.message,
                extra=facts,
            )


def ring_of(settings: Settings, *, again: float) -> KeyRing | None:
    """The ring of a configuration, as `KeyRing`; None where no delivery of Replicate is expected."""
    if settings.webhook_secret is not None:
        return KeyRing(settings.webhook_keys)
    if settings.api_token is None:
        return None

    async def fetch(timeout: float) -> str:  # noqa: ASYNC109
        return await fetch_secret(settings, timeout=timeout)

    return KeyRing(fetch=fetch, again=again)


async def fetch_secret(settings: Settings, *, timeout: float) -> str:  # noqa: ASYNC109
    """The secret of the account that the token belongs to, usable; raises `OutkeepError`."""
    if settings.api_token is None:
        raise Permanent("no_token", "REPLICATE_API_TOKEN is not set")
    from app.replicate.client import connected  # heavy, and most have their secret set

    async with connected(settings.api_url, settings.api_token.get_secret_value()) as api:
        secret = await api.webhook_secret(timeout=timeout)
    try:
        parse_verifying_keys(secret)
    except Permanent as error:
        reason = f"the API's answer holds no usable webhook secret: {error.message}"
        raise Permanent(error.code, reason) from None
    return secret
