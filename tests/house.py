"""How large the house is, and how far a reader has to walk in it: `make house`. A mirror, and no limit.

The way of a delivery is read off a real one: receiver, persist and notify worker run in this process, and
each function of ours that runs meanwhile is noted.
"""

import ast
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import grimp

from app.core.names import NOTIFY_QUEUE, PERSIST_QUEUE
from app.deployment import connect, prepare
from tests.own_valkey import own_valkey
from tests.receive.web import environment, in_thread
from workers.engine.async_worker import AsyncWorker
from workers.services import ASYNCHRONOUS

ROOT = Path(__file__).parent.parent
OURS = ("app", "workers")
SMALL = 4
"""Lines of a body that hardly earns a name of its own when it is called once."""


def main() -> None:
    files = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    way = sorted(walked())
    alone = [len(list((ROOT / package).glob("[!_]*.py"))) for package in OURS]
    graph = grimp.build_graph(*OURS, cache_dir=None)
    single = [one for one in graph.modules if len(graph.find_modules_that_directly_import(one)) == 1]
    tiny = [name for path in files for name in called_once(path)]
    print(f"lines of app and workers                    {lines} in {len(files)} files")
    print(
        f"files for one delivery, POST to told        {len({file for file, _ in way})} ({len(way)} functions)"
    )
    print(f"modules directly in app and in workers      {alone[0]} and {alone[1]}")
    print(f"modules with one importer                   {len(single)}")
    print(f"private functions of {SMALL} lines, called once    {len(tiny)}")
    if "-v" in sys.argv:
        print(*(f"{file}: {function}" for file, function in way), sep="\n")
        print("one importer:", *sorted(single), sep="\n  ")
        print("called once:", *tiny, sep="\n  ")


def called_once(path: Path) -> Iterator[str]:
    """Private functions with a short body that are named once beside their definition."""
    tree = ast.parse(path.read_text())
    used = [one.id for one in ast.walk(tree) if isinstance(one, ast.Name)]
    used += [one.attr for one in ast.walk(tree) if isinstance(one, ast.Attribute)]
    for one in ast.walk(tree):
        if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) or not one.name.startswith("_"):
            continue
        body = one.body[1:] if ast.get_docstring(one) else one.body
        last = one.body[-1].end_lineno or 0
        if (
            not one.name.endswith("__")
            and body
            and last - body[0].lineno < SMALL
            and used.count(one.name) == 1
        ):
            yield f"{path.relative_to(ROOT)}: {one.name}"


def walked() -> set[tuple[str, str]]:
    """File and name of each function of ours that runs for one delivery with one file and one handler."""
    with own_valkey() as valkey, outside() as origin, tempfile.TemporaryDirectory() as name:
        valkey.start()
        folder = Path(name)
        handlers = folder / "outkeep.toml"
        secret = "whsec_Z2FsbGVyeS1nYWxsZXJ5LWdhbGxlcnkh"
        handlers.write_text(f'[[handler]]\nname = "gallery"\nurl = "{origin}/told"\nsecret = "{secret}"\n')
        more = {
            "OUTKEEP_HANDLERS": str(handlers),
            "OUTKEEP_OUTPUT_HOSTS": origin,
            "OUTKEEP_NOTIFY_PRIVATE": "true",
        }
        deployment = connect(*prepare(environment(valkey.url, folder, OUTKEEP_DISK_FLOOR="0", **more)))
        body = {"id": "ype2b3w02xrme0cqadzrms82nm", "status": "succeeded", "output": [f"{origin}/out-0.png"]}
        notes = Notes()
        with in_thread(valkey.url, folder, OUTKEEP_DISK_FLOOR="0", **more) as web, notes.taken():
            assert web.deliver(json.dumps(body).encode()).status == 202
        for queue in (PERSIST_QUEUE, NOTIFY_QUEUE):
            worker = AsyncWorker(
                queue, connection=valkey.redis, jobs=partial(ASYNCHRONOUS[queue], deployment, valkey.redis)
            )
            with notes.taken():
                worker.work(burst=True)
        assert list((folder / "outputs").rglob("told-gallery.json")), "the handler was not told"
    folders = tuple(f"{ROOT / package}/" for package in OURS)
    inside = [code for code in notes.code if code.co_filename.startswith(folders)]
    return {
        (str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname)
        for code in inside
        if not code.co_name.startswith("<")
    }


class Notes:
    """Notes the code of each function that begins in any thread started from now on, while it is told to."""

    def __init__(self) -> None:
        self.code = set[CodeType]()
        self._on = False
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    @contextmanager
    def taken(self) -> Iterator[None]:
        self._on = True
        yield
        self._on = False

    def _note(self, frame: FrameType, event: str, _argument: Any) -> None:
        if self._on and event == "call":
            self.code.add(frame.f_code)


class Outside(BaseHTTPRequestHandler):
    """A host of outputs, and a handler."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, b"\x89PNG\r\n\x1a\n" + bytes(1000))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(204, b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def outside() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Outside) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    main()
