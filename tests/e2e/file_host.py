"""An HTTP server for output files that sends each in small pieces, so that a kill meets work in flight."""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress


class FileHost:
    """Files by path; `hurry` ends all slowness from then on.

    `open` counts the answers on their way, `most` how many those have been, `asked` how often each path was
    requested.
    """

    def __init__(self, *, pieces: int, pause: float) -> None:
        self.url = ""
        self.open = self.most = 0
        self.asked: Counter[str] = Counter()
        self._files: dict[str, bytes] = {}
        self._pieces = pieces
        self._pause = pause
        self._hurry = asyncio.Event()
        self._loop = asyncio.new_event_loop()

    def add(self, name: str, content: bytes) -> str:
        """Host a file; its URL."""
        path = f"/{len(self._files)}/{name}"
        self._files[path] = content
        return f"{self.url}{path}"

    def leading_to(self, url: str) -> str:
        """A URL that redirects to `url`."""
        return f"{self.url}/to/{url}"

    def sha256(self, url: str) -> str:
        """The hash of a hosted file, in hex."""
        return hashlib.sha256(self._files[url.removeprefix(self.url)]).hexdigest()

    def hurry(self) -> None:
        """From now on answer at once."""
        self._loop.call_soon_threadsafe(self._hurry.set)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            self.asked[path] += 1
            if path.startswith("/to/"):
                location = path.removeprefix("/to/").encode()
                writer.write(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location)
                content = b""
            else:
                content = self._files[path]
                writer.write(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(content)
                )
            step = len(content) // self._pieces + 1
            for start in range(0, len(content), step):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._pause)
                writer.write(content[start : start + step])
                await writer.drain()
        self.open -= 1

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=512)
        )
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        for _ in range(3):  # until the connections that were closed just now are
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


@contextmanager
def file_host(*, pieces: int = 8, pause: float = 0.1) -> Iterator[FileHost]:
    """Run one on a free port of 127.0.0.1; each file takes `pieces * pause` seconds."""
    host = FileHost(pieces=pieces, pause=pause)
    started = threading.Event()
    thread = threading.Thread(target=host._serve, args=(started,))
    thread.start()
    started.wait()
    try:
        yield host
    finally:
        host._loop.call_soon_threadsafe(host._loop.stop)
        thread.join()
