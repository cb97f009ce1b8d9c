"""What one sender may take of the receiver: time, memory and connections. Small ones make quick tests."""

from dataclasses import dataclass, replace

SHARE = 4
"""One sender, who is no trusted proxy, may take this part of the connections and of the budget for bodies."""

RESERVED_FILES = 128
"""Open files that connections leave to the spool, to Redis and to the storage."""


@dataclass(frozen=True)
class Limits:
    """Times are in seconds, sizes in bytes."""

    head_seconds: float = 10.0
    """For the head of a request, and for the first byte of a new connection."""
    body_seconds: float = 60.0
    """For a whole body."""
    stall_seconds: float = 10.0
    """Longest pause within a body."""
    keep_alive_seconds: float = 75.0
    """Between two requests on one connection, while there are few."""
    unread_seconds: float = 60.0
    """How long a client may read nothing of an answer that waits for it."""
    linger_seconds: float = 30.0
    """For the last bytes of an answer before a connection that we closed is cut."""
    grace_seconds: float = 20.0
    """For requests in flight after SIGTERM."""

    secret_seconds: float = 30.0
    """Between two fetches of the webhook secret because a signature does not fit. Replicate, which tries for
    a minute, meets its new secret here all the same."""

    head_bytes: int = 64 << 10
    headers: int = 128
    connections: int = 2000
    backlog: int = 2048
    """Connections that the system holds until we take them."""
    pipelined: int = 16
    """Requests of one connection that wait for the answer to an earlier one."""
    pieces: int = 4096
    small_piece: int = 256
    """A body may come in so many pieces, and one more for each so many bytes of it."""
    small_body: int = 64 << 10
    """Up to here a body takes nothing from `bodies`: no flood of large ones can shut real deliveries out."""
    spilled_body: int = 1 << 20
    """From here a body waits in a temporary file until it is whole; where many come, from `small_body`."""
    bodies: int = 256 << 20
    """For all larger bodies in flight together."""
    large_at_once: int = 2
    """Bodies from `spilled_body` that are verified and parsed at the same time."""

    def keep_alive(self, connections: int) -> float:
        """How long one of so many connections may be idle: from half of what we take on, less and less."""
        return self.keep_alive_seconds * min(1.0, max(0.02, 2 - 2 * connections / self.connections))

    def within(self, files: int) -> "Limits":
        """These limits in a process that may open so many files.

        A connection needs two, one of them for its body or for the file that it is sent. The server takes all
        that has queued up before it closes what is too much, and goes round thrice until that is closed.
        """
        backlog = min(self.backlog, files // 8)
        room = (files - RESERVED_FILES - 3 * backlog) // 2
        return replace(self, backlog=backlog, connections=max(8, min(self.connections, room)))
