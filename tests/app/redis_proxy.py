"""A wire between a client and a Redis, on which the answers can be changed."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Rewrite = Callable[[bytes], bytes]


@contextmanager
def rewriting(unix_path: str, rewrite: Rewrite) -> Iterator[str]:
    """The URL of a Redis that answers as the one at `unix_path` does, after `rewrite`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, unix_path, rewrite), daemon=True)
        accepting.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _accept(listener: socket.socket, unix_path: str, rewrite: Rewrite) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(unix_path)
            for source, target, change in ((client, server, bytes), (server, client, rewrite)):
                threading.Thread(target=_pump, args=(source, target, change), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, change: Rewrite) -> None:
    with source, suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_RDWR)
