"""Who sends bad signatures by the hundred: such an address is told 429, good deliveries never are."""

from collections import OrderedDict, deque

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
