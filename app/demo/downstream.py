"""The handler of the demonstration: a real HTTP server that verifies what it is sent."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.core.errors import Rejected
from app.core.keys import parse_verifying_keys
from app.core.signature import verify


@contextmanager
def downstream(secret: str, on_event: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    """Run it on a free port and give its URL; `on_event` is called in its threads for each genuine event."""
    keys = parse_verifying_keys(secret)

    class Downstream(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            try:
                verify(headers, body, keys, now=time.time())
            except Rejected as error:
                self.send_response(error.status)
            else:
                on_event(json.loads(body))
                self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing of each request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Downstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/outputs"
        server.shutdown()
