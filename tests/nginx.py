"""A real nginx before a receiver, as `make nginx` brings it, with the settings that many have copied."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.listening import free_port
from tests.app.web import Web, wait_until

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
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream outkeep {{ server 127.0.0.1:{upstream}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 32m;
    proxy_request_buffering {buffering};
    location / {{
      proxy_pass http://outkeep;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
    location /metrics {{ return 403; }}
  }}
}}
"""


@contextmanager
def in_front(web: Web, folder: Path, *, buffering: str) -> Iterator[Web]:
    """nginx, with one connection to the receiver that all share; what is asked for there reaches `web`."""
    program = shutil.which("nginx") or shutil.which(OWN)
    assert program, "nginx is missing: `make nginx` brings it from Debian"
    port = free_port()
    settings = folder / "nginx.conf"
    settings.write_text(_SETTINGS.format(folder=folder, upstream=web.port, port=port, buffering=buffering))
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
        return proxy.ask("GET", "/healthz").status == 200
    return False
