"""How often one may guess the admin token."""

import logging
from dataclasses import dataclass, field

from app.core.addresses import sender

LIMIT = 10
"""Wrong tokens that one address may send in a `WINDOW`."""

WINDOW = 60.0
"""Seconds."""

MOST_ADDRESSES = 10_000
"""Addresses that are remembered; the oldest are forgotten first."""

log = logging.getLogger("outkeep.guesses")


@dataclass
class Guesses:
    """Wrong tokens by address."""

    _windows: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Address → when its window began, and how many wrong tokens came since; the oldest window first."""

    def wait(self, address: str, now: float) -> float:
        """Seconds until tokens from `address` are looked at again; 0 while they are. `now` is in seconds."""
        began, count = self._windows.get(sender(address), (now, 0))
        return max(0.0, began + WINDOW - now) if count >= LIMIT else 0.0

    def wrong(self, address: str, now: float) -> None:
        """Note a wrong token."""
        network = sender(address)
        began, count = self._windows.get(network, (now, 0))
        if now - began >= WINDOW:
            self._windows.pop(network)
            began, count = now, 0
        self._windows[network] = (began, count + 1)
        if len(self._windows) > MOST_ADDRESSES:
            self._windows.pop(next(iter(self._windows)))
        if count + 1 == LIMIT:
            facts = {"address": network, "count": LIMIT}
            log.warning("wrong admin tokens: this address has to wait for a minute", extra=facts)
