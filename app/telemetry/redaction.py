"""Secrets out of text: the second line behind never putting them in."""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from app.core.handlers import Handler, Webhook
from app.core.secret import SecretStr
from app.core.signature import SharedKey
from app.settings import Settings

HIDDEN = "[hidden]"
SHORTEST = 8
"""Characters that a secret must have to be looked for: hiding each `local` would spoil more than it saves."""

_DEEPEST = 8
_FORMS: Sequence[tuple[str, re.Pattern[str], str]] = (
    ("whs", re.compile(r"\b(whsec_|whsk_)[A-Za-z0-9+/=_-]{4,}"), rf"\1{HIDDEN}"),
    ("r8_", re.compile(r"\b(r8_)[A-Za-z0-9_-]{4,}"), rf"\1{HIDDEN}"),
    ("bearer", re.compile(r"(?i)\b(bearer\s+)[^\s\"',]+"), rf"\1{HIDDEN}"),
    ("sig", re.compile(r"(?i)\b((?:x-amz-|x-goog-)?signature=|sig=)[^&\s\"'<>]+"), rf"\1{HIDDEN}"),
    ("://", re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@"), rf"\1{HIDDEN}@"),
)
"""What looks like a secret, whoever made it: signing secrets, tokens, signed links, passwords in URLs.

Each with a piece that the text must hold, in lower case: most lines do not, and no search is made then."""


class Redactor:
    """Hides the secrets it was told of, and what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: Sequence[str] = ()
        self._signs: Sequence[str] = ()
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Hide these, too; any thread may say so."""
        long_enough = {secret for secret in (*self._known, *secrets) if len(secret) >= SHORTEST}
        # The longest first: a piece of it may be a secret, too.
        self._known = sorted(long_enough, key=len, reverse=True)
        as_json = {json.dumps(secret, ensure_ascii=False)[1:-1] for secret in long_enough}
        self._signs = (*long_enough, *as_json)

    def is_clean(self, line: str) -> bool:
        """Whether a line of JSON holds no secret, nor anything from which a form of one might begin."""
        if any(secret in line for secret in self._signs):
            return False
        folded = line.lower()
        return not any(hint in folded for hint, _, _ in _FORMS)

    def text(self, text: str) -> str:
        """`text` with every secret replaced."""
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, HIDDEN)
        folded = text.lower()
        for hint, form, replacement in _FORMS:
            if hint in folded:
                text = form.sub(replacement, text)
        return text

    def value(self, value: Any, depth: int = 0) -> Any:
        """Any value as JSON can hold it, without secrets; what JSON does not know becomes its `repr`."""
        match value:
            case str():
                return self.text(str(value))
            case None | bool() | int():
                return value
            case dict() | Mapping() if depth < _DEEPEST:
                return {self.text(str(key)): self.value(item, depth + 1) for key, item in value.items()}
            case list() | tuple() | set() | frozenset() if depth < _DEEPEST:
                return [self.value(item, depth + 1) for item in value]
            case float() if isfinite(value):  # JSON knows no other
                return value
            case _:
                return self.text(_repr(value))


def secrets_of(settings: Settings, handlers: Iterable[Handler] = ()) -> set[str]:
    """Every secret of a process in every spelling in which it could slip into a text."""
    found = {key.decode("utf-8", "replace") for key in settings.secret_keys or ()}
    found |= _password(settings.redis_url or "")
    for value in vars(settings).values():
        for secret in value if isinstance(value, tuple) else (value,):
            if isinstance(secret, SecretStr):
                found |= spellings(secret.get_secret_value())
    for handler in handlers:
        keys = handler.target.keys if isinstance(handler.target, Webhook) else ()
        found |= {base64.b64encode(key.secret).decode() for key in keys if isinstance(key, SharedKey)}
    return found


def spellings(secret: str) -> set[str]:
    """The secret, each of several side by side, each without its prefix, and the password in a URL."""
    words = secret.split()
    return {secret, *words, *(word.partition("_")[2] for word in words)} | _password(secret)


def _password(url: str) -> set[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return set()
    return {password, unquote(password), quote(unquote(password), safe="")} if password else set()


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  # a log line must not end what it tells of
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
