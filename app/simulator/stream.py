"""Output as server-sent events: what `urls.stream` of a prediction leads to."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from app.simulator import state
from app.simulator.ledger import Entry


def event(name: str, identity: str, data: str) -> bytes:
    """One event; every line of `data` gets a field of its own."""
    fields = "".join(f"data: {line}\n" for line in data.split("\n"))
    return f"event: {name}\nid: {identity}\n{fields}\n".encode()


async def events(entry: Entry) -> AsyncIterator[bytes]:
    """From the first token on, whenever the stream is opened; the last event is `done`."""
    shown = 0
    while True:
        current, changed = entry.object, entry.changed
        tokens = _tokens(current.get("output"))
        for number in range(shown, len(tokens)):
            yield event("output", f"{entry.object['id']}:{number}", tokens[number])
        shown = max(shown, len(tokens))
        if state.is_terminal(current):
            break
        await changed.wait()
        # Moves of the same moment are one.
        await asyncio.sleep(0)
    if current["status"] == "failed":
        yield event("error", f"{current['id']}:{shown}", str(current["error"]))
    yield event(
        "done", f"{current['id']}:{shown + 1}", "{}" if current["status"] == "succeeded" else _why(current)
    )


def _tokens(output: Any) -> list[str]:
    return [str(token) for token in output] if isinstance(output, list) else []


def _why(current: state.Object) -> str:
    return '{"reason": "canceled"}' if current["status"] == "canceled" else '{"reason": "error"}'
