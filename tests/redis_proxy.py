"""A wire between a client and a Redis, on which the answers can be changed."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Rewrite = Callable[[bytes], bytes]


@contextmanager
def rewriting(unix_path: str, rewrite: Rewrite, ask: Rewrite = bytes) -> Iterator[str]:
    """The URL of a Redis that answers as the one at `unix_path` does, after `rewrite`.

    `ask` sees what is asked before it does, and may hold it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, unix_path, rewrite, ask), daemon=True)
        accepting.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _accept(listener: socket.socket, unix_path: str, rewrite: Rewrite, ask: Rewrite) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(unix_path)
            for source, target, change in ((client, server, ask), (server, client, rewrite)):
                threading.Thread(target=_pump, args=(source, target, change), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, change: Rewrite) -> None:
    with source, suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_RDWR)


class Partition:
    """A wire to a Redis that can be cut without a word: nothing passes any more, and nobody is told."""

    def __init__(self, unix_path: str) -> None:
        self._unix_path = unix_path
        self._cut = threading.Event()
        self._sockets: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        """The server loses all connections; their clients hear nothing of it, nor do new ones get through."""
        self._cut.set()
        for _, server in self._sockets:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        """New connections get through; the old ones stay dead, and silent."""
        self._cut.clear()

    def close(self) -> None:
        """End all of it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for pair in self._sockets:
            for one in pair:
                one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._sockets.append((client, server))
                if not self._cut.is_set():
                    server.connect(self._unix_path)
                    for source, target in ((client, server), (server, client)):
                        threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        if not self._cut.is_set():
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
