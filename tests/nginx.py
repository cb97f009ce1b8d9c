"""A real nginx before a receiver, as `make nginx` brings it: set up as many have copied it, or as we say."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.receive.listening import free_port
from tests.reader import README, fences
from tests.receive.web import Web, wait_until

OWN = Path(__file__).parent.parent / ".nginx" / "usr" / "sbin" / "nginx"

_SETTINGS = """
user root;
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{servers}
}}
"""

_COPIED = """
map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
upstream outkeep { server 127.0.0.1:8000; keepalive 1; }
server {
  server_name outkeep;
  client_max_body_size 32m;
  location / {
    proxy_pass http://outkeep;
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
  }
  location /metrics { return 403; }
}
"""
(_OURS,) = (fence.text for fence in fences(README) if fence.language == "nginx")
SERVERS = {
    "on": _COPIED,
    "off": _COPIED.replace("client_max_body_size", "proxy_request_buffering off; client_max_body_size"),
    "readme": _OURS.replace("keepalive 16", "keepalive 1"),
}
"""What many have copied, with and without buffering of requests; and what the README says."""


@contextmanager
def in_front(web: Web, folder: Path, servers: str) -> Iterator[Web]:
    """nginx, with one connection to the receiver that all share; what is asked for there reaches `web`."""
    program = shutil.which("nginx") or shutil.which(OWN)
    assert program, "nginx is missing: `make nginx` brings it from Debian"
    port = free_port()
    settings = folder / "nginx.conf"
    servers = servers.replace("127.0.0.1:8000", f"127.0.0.1:{web.port}")
    servers = servers.replace("server_name", f"listen 127.0.0.1:{port}; server_name")
    settings.write_text(_SETTINGS.format(folder=folder, servers=servers))
    command = [program, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(settings)]
    with subprocess.Popen(command, env={"PATH": os.defpath}) as process:
        try:
            proxy = Web(port, folder)
            wait_until(lambda: process.poll() is not None or _answers(proxy))
            yield proxy
        finally:
            process.terminate()


def _answers(proxy: Web) -> bool:
    with suppress(OSError):
        return proxy.ask("GET", "/files/none").status == 404
    return False
