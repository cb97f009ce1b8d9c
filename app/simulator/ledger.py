"""The predictions and trainings of the simulator, what brings them to life, and their streams."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.core.errors import Rejected
from app.core.names import ID_LETTERS, Kind
from app.simulator import state
from app.simulator.files import FileHost, Inputs
from app.simulator.models import Given, Media, Plan, plan
from app.simulator.state import Filter, Object, Order
from app.simulator.webhooks import Sender, Throttle, Webhook, new_webhook_id, to_body


@dataclass(slots=True, eq=False)
class Entry:
    """One object and what belongs to it; `files` are the URLs to remove with its data."""

    kind: Kind
    object: Object
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None
    files: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced by a new one, at the next change."""

    def show(self, current: Object) -> None:
        """Let `current` be the object from now on."""
        self.object = current
        self.changed.set()
        self.changed = asyncio.Event()


class Ledger:
    """Creates, runs, cancels, lists and forgets; lives on one event loop.

    `pace` is how long a model takes, `keep` how long its data stays after the end, `event_interval` the
    least time between two progress events, all in seconds.
    """

    def __init__(
        self,
        base_url: str,
        files: FileHost,
        inputs: Inputs,
        sender: Sender,
        *,
        pace: float,
        keep: float,
        event_interval: float,
    ) -> None:
        self._base_url = base_url
        self._files = files
        self._inputs = inputs
        self._sender = sender
        self._pace = pace
        self._keep = keep
        self._event_interval = event_interval
        self._entries: dict[tuple[Kind, str], Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, order: Order) -> Entry:
        """A new entry, `starting`, and its life begins. Raises `Rejected` (422) for a bad input."""
        planned = plan(order.kind, order.model, order.input, destination=order.destination)
        identity = "".join(secrets.choice(ID_LETTERS) for _ in range(26))
        fresh = state.created(order, identity=identity, now=datetime.now(UTC), base_url=self._base_url)
        entry = self._enter(order.kind, fresh)
        entry.life = self._spawn(self._live(entry, planned))
        if order.cancel_after is not None:
            asyncio.get_running_loop().call_later(order.cancel_after, self._expire, entry)
        return entry

    def keep_object(self, kind: Kind, given: Object) -> Entry:
        """Put an object of the caller's making in, as it is; the same id replaces.

        It needs `id` and `created_at`; the files of its output that lie here go when its data goes.
        """
        entry = self._entries.get((kind, given["id"])) or self._enter(kind, given)
        entry.show(given)
        entry.files.extend(_texts(given.get("output")))
        if state.is_terminal(given):
            self._settle(entry)
        return entry

    def find(self, kind: Kind, identity: str) -> Entry:
        """The entry of an id. Raises `Rejected` (404)."""
        entry = self._entries.get((kind, identity))
        if entry is None:
            raise Rejected("not_found", "The requested resource could not be found.", status=404)
        return entry

    def newest_first(self, kind: Kind, wanted: Filter) -> list[Object]:
        """All objects of a kind that a filter lets through, by creation time, then order of arrival."""
        latest = [entry.object for entry in reversed(self._entries.values()) if entry.kind is kind]
        shown = [item for item in latest if state.matches(item, wanted)]
        return sorted(shown, key=lambda item: state.moment(item["created_at"]), reverse=True)

    def cancel(self, kind: Kind, identity: str) -> Entry:
        """End a running entry as `canceled`; one that has ended stays as it is. Raises `Rejected` (404)."""
        entry = self.find(kind, identity)
        if not state.is_terminal(entry.object):
            if entry.life is not None:
                entry.life.cancel()
            self._end(entry, "canceled", None)
        return entry

    def _expire(self, entry: Entry) -> None:
        """What happens at its deadline."""
        if not state.is_terminal(entry.object):
            if entry.life is not None:
                entry.life.cancel()
            self._end(entry, "aborted" if entry.object["status"] == "starting" else "canceled", None)

    def remove_data(self, kind: Kind, identity: str) -> Entry:
        """What happens an hour after the end, now. Raises `Rejected` (404)."""
        entry = self.find(kind, identity)
        self._remove(entry)
        return entry

    def announce(self, entry: Entry, event: str, *, webhook: str, webhook_id: str | None = None) -> str:
        """Send the object as it is now and return the `webhook-id`; a terminal one is retried."""
        identity = webhook_id or new_webhook_id()
        self._spawn(
            self._sender.send(
                Webhook(
                    subject=entry.object["id"],
                    event=event,
                    url=webhook,
                    body=to_body(entry.object),
                    webhook_id=identity,
                    terminal=state.is_terminal(entry.object),
                )
            )
        )
        return identity

    async def close(self) -> None:
        """Stop everything that runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _enter(self, kind: Kind, given: Object) -> Entry:
        entry = Entry(kind, given)
        self._entries[kind, given["id"]] = entry
        return entry

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _live(self, entry: Entry, planned: Plan) -> None:
        seconds = self._pace if planned.seconds is None else planned.seconds
        if planned.status == "aborted":
            await asyncio.sleep(seconds)
            self._end(entry, planned.status, planned.error)
            return
        entry.show(state.started(entry.object, datetime.now(UTC)))
        self._publish(entry, "start")
        throttle = Throttle(self._event_interval)
        output = planned.output
        if isinstance(output, Given):
            given = entry.object["input"].get(output.key)
            output = await self._inputs.find(str(given)) if given else None
            if given and output is None:
                self._end(entry, "failed", f"the input {planned.output.key} cannot be fetched")
                return
        snapshots = planned.snapshots(self._hosted(output, entry))
        for snapshot in snapshots:
            await asyncio.sleep(seconds / len(snapshots))
            before = entry.object
            entry.show(state.progressed(before, output=snapshot.output, logs=snapshot.logs))
            event = state.changed_event(before, entry.object, self._wanted(entry))
            is_last = snapshot is snapshots[-1]
            if event and not is_last and throttle.admits(asyncio.get_running_loop().time()):
                self._publish(entry, event)
        self._end(entry, planned.status, planned.error)

    def _hosted(self, output: Any, entry: Entry) -> Any:
        if isinstance(output, Media):
            if output.inline:
                return f"data:{output.content_type};base64,{base64.b64encode(output.content).decode()}"
            url = self._files.add(output.name, output.content, output.content_type)
            entry.files.append(url)
            return url
        if isinstance(output, list):
            return [self._hosted(item, entry) for item in output]
        if isinstance(output, dict):
            return {key: self._hosted(item, entry) for key, item in output.items()}
        return output

    def _end(self, entry: Entry, status: str, error: str | None) -> None:
        entry.show(state.ended(entry.object, status, datetime.now(UTC), error=error))
        self._publish(entry, "completed")
        self._settle(entry)

    def _settle(self, entry: Entry) -> None:
        entry.ended.set()
        asyncio.get_running_loop().call_later(self._keep, self._remove, entry)

    def _remove(self, entry: Entry) -> None:
        entry.show(state.removed(entry.object))
        for url in entry.files:
            self._files.remove(url)
        entry.files.clear()

    @staticmethod
    def _wanted(entry: Entry) -> list[str]:
        # An empty filter asks for everything, as a missing one does.
        return entry.object.get("webhook_events_filter") or list(state.EVENTS)

    def _publish(self, entry: Entry, event: str) -> None:
        webhook = entry.object.get("webhook")
        if webhook and event in self._wanted(entry):
            self.announce(entry, event, webhook=webhook)


def _texts(output: Any) -> list[str]:
    if isinstance(output, str):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [text for item in output for text in _texts(item)] if isinstance(output, list) else []


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
