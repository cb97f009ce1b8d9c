"""The command `send`: a signed delivery, to try a receiver out."""

import asyncio
import http.client
import json
import os
import secrets
import string
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from app.cli.terminal import say
from app.core.errors import Permanent
from app.core.manifest import format_time
from app.core.names import ID_LETTERS
from app.core.notation import http_url
from app.core.signature import parse_signing_keys, signed_headers
from app.receive.keyring import fetch_secret
from app.settings import Settings, load

TIMEOUT = 15.0
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@click.command(short_help="Send one signed delivery, to try a receiver out.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@click.option("--to", "url", help="Where to send it; by default the receiver of this configuration.")
@click.option("--secret", help="Secret to sign with; by default that of the receiver.")
@click.option("--training", is_flag=True, help="Send it to the path of trainings.")
@click.option(
    "--json", "as_json", is_flag=True, help="Where it went and what was answered as one JSON object."
)
def send(file: Path | None, url: str | None, secret: str | None, *, training: bool, as_json: bool) -> None:
    """Send one signed delivery: FILE (a prediction as JSON, - for standard input), or a sample.

    The sample is a new succeeded prediction each time, whose output is a small picture.

    \b
    Examples:
      outkeep send
      outkeep send prediction.json --to https://outkeep.example.com/webhooks/replicate
    """
    settings = load(os.environ)
    if secret is None:
        secret = _known_secret(settings)
    body = _sample() if file is None else _read(file)
    url = url or f"{settings.own_url}/webhooks/replicate{'/trainings' if training else ''}"
    status, answer = _post(url, body, _headers(body, secret) | {"content-type": "application/json"})
    shown = json.dumps({"url": url, "status": status, "answer": answer}) if as_json else f"{status} {answer}"
    for line in shown.splitlines():
        say(line)
    if not 200 <= status < 300:  # noqa: PLR2004
        raise Permanent("refused", f"{url} did not accept it")


def _known_secret(settings: Settings) -> str:
    if settings.webhook_secret is not None:
        return settings.webhook_secret.get_secret_value()
    if settings.api_token is not None:
        return asyncio.run(fetch_secret(settings, timeout=TIMEOUT))
    raise click.UsageError("nothing to sign with: give --secret, or set REPLICATE_WEBHOOK_SECRET")


def _headers(body: bytes, secret: str) -> dict[str, str]:
    try:
        keys = parse_signing_keys(secret)
    except Permanent as error:
        raise click.BadParameter(f"cannot sign with the secret: {error.message}") from None
    return signed_headers(f"msg_{secrets.token_hex(13)}", int(time.time()), body, keys[:1])


def _read(file: Path) -> bytes:
    try:
        with click.open_file(str(file), "rb") as source:
            body: bytes = source.read()
    except OSError as error:
        raise click.BadParameter(f"cannot read {file}: {error.strerror}") from None
    return body


def _sample() -> bytes:
    now = format_time(datetime.now(UTC))
    prediction: dict[str, Any] = {
        "completed_at": now,
        "created_at": now,
        "error": None,
        "id": "".join(secrets.choice(ID_LETTERS) for _ in range(26)),
        "input": {"prompt": "one pixel"},
        "logs": "",
        "metrics": {"predict_time": 0.1},
        "model": "outkeep/sample",
        "output": f"data:image/png;base64,{_PIXEL}",
        "started_at": now,
        "status": "succeeded",
        "version": "hidden",
    }
    return json.dumps(prediction, separators=(",", ":")).encode()


def _post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    try:
        parts = urlsplit(http_url(url))
    except Permanent as error:
        raise click.BadParameter(f"cannot send to {url}: {error.message}") from None
    assert parts.hostname is not None
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    # Without a port, the end of an IPv6 address would be taken for one.
    connection = kind(parts.hostname, parts.port or kind.default_port, timeout=TIMEOUT)
    # As a request line can hold it; what is encoded already stays as it is.
    target = quote(f"{parts.path or '/'}{parts.query and '?' + parts.query}", safe=string.punctuation)
    try:
        connection.request("POST", target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise Permanent(
            "unreachable", f"{url} does not answer: {str(error) or type(error).__name__}"
        ) from None
    finally:
        connection.close()
