"""How often one address may be wrong: bad signatures, and guesses at the admin token."""

import logging
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from app.core.addresses import sender

LIMIT = 200
"""Bad signatures from one address within `WINDOW` that are answered as such."""

WINDOW = 60.0
"""Seconds."""

MAX_ADDRESSES = 1000
"""Addresses that are remembered; of more, the ones not heard from for longest are forgotten."""


class Floods:
    """Counts bad signatures by address; `now` is any clock in seconds that never goes back."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, address: str, now: float) -> bool:
        """Note a bad signature; whether there were more than the limit in the last `WINDOW` seconds."""
        source = sender(address)
        times = self._times.setdefault(source, deque(maxlen=self._limit + 1))
        self._times.move_to_end(source)
        if len(self._times) > MAX_ADDRESSES:
            self._times.popitem(last=False)
        times.append(now)
        return len(times) > self._limit and now - times[0] < WINDOW


GUESSES = 10
"""Wrong tokens that one address may send in a `WINDOW`."""

GUESSES_WINDOW = 60.0
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
        return max(0.0, began + GUESSES_WINDOW - now) if count >= GUESSES else 0.0

    def wrong(self, address: str, now: float) -> None:
        """Note a wrong token."""
        network = sender(address)
        began, count = self._windows.get(network, (now, 0))
        if now - began >= GUESSES_WINDOW:
            self._windows.pop(network)
            began, count = now, 0
        self._windows[network] = (began, count + 1)
        if len(self._windows) > MOST_ADDRESSES:
            self._windows.pop(next(iter(self._windows)))
        if count + 1 == GUESSES:
            facts = {"address": network, "count": GUESSES}
            log.warning("wrong admin tokens: this address has to wait for a minute", extra=facts)
