"""The configuration: one frozen object made at start, refused with every mistake named at once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from app.core import notation
from app.core.errors import ConfigurationError, Permanent
from app.core.hosts import AllowedHosts, HostRules
from app.core.links import parse_secret_keys
from app.core.secret import SecretStr
from app.core.signature import VerifyingKey, parse_verifying_keys

_PREFIX = "OUTKEEP_"
_OF_A_SERVICE = re.compile(
    r"OUTKEEP_(\w+_)?("
    r"SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=(tcp|udp|sctp)://.*|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?=.*"
    r"|NAME=/.*|ENV_\w+=.*)",
    re.ASCII | re.DOTALL,
)
"""What Kubernetes, and Docker's links, set for a service called `outkeep` or `outkeep-…`."""

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)

_YES = frozenset({"true", "yes", "on", "1", "t", "y"})
_NO = frozenset({"false", "no", "off", "0", "f", "n"})
_OUTPUT_HOSTS = HostRules.parse("replicate.delivery *.replicate.delivery storage.googleapis.com")
_SHORTEST_RECORD_TTL = 2 * 3600


def _redis_url(text: str) -> str:
    from redis import Redis, RedisError

    url = notation.redis_url(text)
    try:
        Redis.from_url(url).connection_pool.make_connection()
    except (ValueError, TypeError, RedisError):
        # Its own message may quote a piece of the password.
        raise Permanent("bad_url", "the client cannot read it; is a parameter misspelt?") from None
    return url


def _webhook_secret(text: str) -> SecretStr:
    parse_verifying_keys(text)
    return SecretStr(text)


def _token(text: str) -> SecretStr:
    if not text.isascii() or not text.isprintable() or " " in text:
        # A header cannot hold it, so the request could not even be made, or would never fit.
        raise Permanent("bad_token", "it holds a blank, a line end or a sign that no token has; copy it anew")
    return SecretStr(text)


def _own_token(text: str) -> SecretStr:
    if not text.isprintable() or text != text.strip():
        raise Permanent("bad_token", "it begins or ends with a blank, or holds a line end; copy it anew")
    return SecretStr(text)


def _retention(text: str) -> int:
    if text.strip().isdecimal() and text.strip(" 0"):
        # In days it would be meant, and everything would be gone within the hour.
        raise Permanent(
            "bad_duration",
            "write a whole number of s, m, h, d or w, such as 30d; a number alone would be seconds",
        )
    seconds = notation.duration(text)
    if seconds == 0:
        raise Permanent("bad_duration", "it must be more than 0")
    return seconds


def _record_ttl(text: str) -> int:
    seconds = notation.duration(text)
    if seconds < _SHORTEST_RECORD_TTL:
        raise Permanent("bad_duration", f"it must be {notation.in_words(_SHORTEST_RECORD_TTL)} or more")
    return seconds


def _proxy(text: str) -> SecretStr:
    return SecretStr(notation.proxy_url(text))


def _path(text: str) -> Path:
    notation.require_one_line(text)
    # What sets the environment is not always a shell.
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise Permanent("bad_path", "the home that ~ stands for cannot be found") from None
    if "\0" in text:
        raise Permanent("bad_path", "no file has such a name")
    return path


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word not in _YES | _NO:
        raise Permanent("bad_flag", "write true or false")
    return word in _YES


def _number(least: int, most: float = float("inf")) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not _WHOLE_NUMBER.fullmatch(text.strip()):
            raise Permanent("bad_number", "write a whole number")
        number = int(text)
        if number < least:
            raise Permanent("bad_number", f"it must be {least} or more")
        if number > most:
            raise Permanent("bad_number", f"it must be {most} or less")
        return number

    return parse


def _word(*words: str) -> Callable[[str], str]:
    listed = [repr(word) for word in words]

    def parse(text: str) -> str:
        if text not in words:
            raise Permanent("bad_word", f"write {', '.join(listed[:-1])} or {listed[-1]}")
        return text

    return parse


def _positive_size(text: str) -> int:
    size = notation.size(text)
    if size == 0:
        raise Permanent("bad_size", "it must be more than 0")
    return size


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, named after its meaning; `_READ` has its environment variable.

    Durations are in seconds, sizes in bytes. Secrets do not show in `repr`.
    """

    webhook_secret: SecretStr | None = None
    api_token: SecretStr | None = None
    api_url: str = "https://api.replicate.com"
    redis_url: str | None = field(default=None, repr=False)
    data: Path = Path("data")
    storage: str | None = None
    public_url: str | None = None
    admin_token: SecretStr | None = None
    secret_keys: tuple[bytes, ...] | None = field(default=None, repr=False)
    handlers: Path | None = None
    output_hosts: HostRules = _OUTPUT_HOSTS
    notify_private: bool = False
    keep_inputs: bool = False
    retention: int | None = None
    max_body: int = 32 << 20
    max_file: int = 10 << 30
    reconcile: Literal["all", "known", "off"] | None = None
    reconcile_notify: bool = True
    slots: int = 256
    max_files: int = 1000
    disk_floor: int | None = None
    record_ttl: int = 7 * 86400
    spool: Literal["on", "off"] = "on"
    allowed_hosts: AllowedHosts | None = None
    share_files: Literal["nobody", "group", "everybody"] = "nobody"
    storage_public_url: str | None = None
    proxy: SecretStr | None = None
    cog_token: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] | None = None
    forwarded_allow_ips: str = "127.0.0.1"
    store_secrets: tuple[SecretStr, ...] = ()
    """What the storage's own variables hold that nobody may see; the storage reads them itself."""

    @property
    def storage_url(self) -> str:
        """Where outputs go; by default a folder below the data."""
        return self.storage or (self.data / "outputs").absolute().as_uri()

    @property
    def own_url(self) -> str:
        """Where this host reaches its own receiver."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What links to us start with."""
        return self.public_url or self.own_url

    @property
    def reconciles(self) -> Literal["all", "known", "off"]:
        """What reconciliation covers; nothing can be asked without a token."""
        return self.reconcile or ("all" if self.api_token else "off")

    @property
    def webhook_keys(self) -> tuple[VerifyingKey, ...]:
        """The keys that a delivery may be signed with; empty when no secret is set."""
        return parse_verifying_keys(self.webhook_secret.get_secret_value()) if self.webhook_secret else ()

    @property
    def umask(self) -> int:
        """What other users of this host are denied: prompts and outputs are in nearly every file."""
        return {"nobody": 0o077, "group": 0o027, "everybody": 0o022}[self.share_files]

    @property
    def temporary(self) -> Path:
        """Where downloads wait until they are stored."""
        return self.data / "tmp"


_READ: dict[str, tuple[str, Callable[[str], Any]]] = {
    "REPLICATE_WEBHOOK_SECRET": ("webhook_secret", _webhook_secret),
    "REPLICATE_API_TOKEN": ("api_token", _token),
    "REPLICATE_BASE_URL": ("api_url", notation.api_url),
    "REDIS_URL": ("redis_url", _redis_url),
    "OUTKEEP_DATA": ("data", _path),
    "OUTKEEP_STORAGE": ("storage", notation.storage_url),
    "OUTKEEP_PUBLIC_URL": ("public_url", notation.base_url),
    "OUTKEEP_ADMIN_TOKEN": ("admin_token", _own_token),
    "OUTKEEP_SECRET_KEY": ("secret_keys", parse_secret_keys),
    "OUTKEEP_HANDLERS": ("handlers", _path),
    "OUTKEEP_OUTPUT_HOSTS": ("output_hosts", HostRules.parse),
    "OUTKEEP_NOTIFY_PRIVATE": ("notify_private", _flag),
    "OUTKEEP_KEEP_INPUTS": ("keep_inputs", _flag),
    "OUTKEEP_RETENTION": ("retention", _retention),
    "OUTKEEP_MAX_BODY": ("max_body", _positive_size),
    "OUTKEEP_MAX_FILE": ("max_file", _positive_size),
    "OUTKEEP_RECONCILE": ("reconcile", _word("all", "known", "off")),
    "OUTKEEP_RECONCILE_NOTIFY": ("reconcile_notify", _flag),
    "OUTKEEP_SLOTS": ("slots", _number(1, 1000)),
    "OUTKEEP_MAX_FILES": ("max_files", _number(1)),
    "OUTKEEP_DISK_FLOOR": ("disk_floor", notation.size),
    "OUTKEEP_RECORD_TTL": ("record_ttl", _record_ttl),
    "OUTKEEP_SPOOL": ("spool", _word("on", "off")),
    "OUTKEEP_ALLOWED_HOSTS": ("allowed_hosts", AllowedHosts.parse),
    "OUTKEEP_SHARE_FILES": ("share_files", _word("nobody", "group", "everybody")),
    "OUTKEEP_STORAGE_PUBLIC_URL": ("storage_public_url", notation.base_url),
    "OUTKEEP_PROXY": ("proxy", _proxy),
    "OUTKEEP_COG_TOKEN": ("cog_token", _own_token),
    "HOST": ("host", notation.listen_host),
    "PORT": ("port", _number(0, 65535)),
    "LOG_LEVEL": ("log_level", lambda text: _word("debug", "info", "warning", "error")(text.lower())),
    "LOG_FORMAT": ("log_format", _word("json", "text")),
    "FORWARDED_ALLOW_IPS": ("forwarded_allow_ips", notation.trusted_proxies),
}
"""Environment variable → attribute of `Settings`, and what reads it; that raises `Permanent`."""

VARIABLES: dict[str, str] = {name: attribute for name, (attribute, _) in _READ.items()}
"""Environment variable → attribute of `Settings`."""

SIZES = ("OUTKEEP_MAX_BODY", "OUTKEEP_MAX_FILE", "OUTKEEP_DISK_FLOOR")
"""Variables that hold a size."""

STORE_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SSE_CUSTOMER_KEY_BASE64",
    "AWS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "AZURE_ENCRYPTION_KEY",
    "AZURE_FABRIC_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_ENCRYPTION_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
)
"""Variables of the stores that hold a secret."""


def load(environment: Mapping[str, str]) -> Settings:
    """Read the settings; raises `ConfigurationError` with one line for each mistake."""
    settings, problems = examine(environment)
    if problems:
        raise ConfigurationError(problems)
    return settings


def examine(environment: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Settings with the defaults in place of mistakes, and one line for each mistake.

    So that whatever else can be wrong is examined in the same start.
    """
    values, problems = _read(environment)
    found: dict[str, Any] = {}
    for name, text in values.items():
        attribute, read = _READ[name]
        try:
            found[attribute] = read(text)
        except Permanent as error:
            problems.append(f"{name}: {error.message}")
    store_secrets = tuple(SecretStr(environment[name]) for name in STORE_SECRETS if environment.get(name))
    return Settings(**found, store_secrets=store_secrets), problems


def doubts(environment: Mapping[str, str]) -> list[str]:
    """What is accepted, and can hardly be meant: one line for each such setting."""
    values, _ = _read(environment)
    found = {name: values.get(name, "").strip() for name in SIZES}
    return [
        f"{name}: a number alone is bytes, and {text} of them are hardly meant; write a unit: {text}MiB"
        for name, text in found.items()
        if notation.lacks_unit(text)
    ]


def _read(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The texts that are set, and what is wrong before any of them is read."""
    values: dict[str, str] = {}
    problems = [_unknown(name) for name, text in sorted(environment.items()) if _is_unknown(name, text)]
    for name in VARIABLES:
        text, path = (_value(environment.get(one)) for one in (name, f"{name}_FILE"))
        if path and text:
            problems.append(f"{name}: set both directly and by {name}_FILE; keep one of them")
        elif path:
            try:
                values[name] = _contents(path)
            except Permanent as error:
                problems.append(f"{name}_FILE: {error.message}")
        # An empty variable counts as not set, save the secret: that one was meant to protect.
        elif text or (text is not None and name == "REPLICATE_WEBHOOK_SECRET"):
            values[name] = text
    return values, problems


def _value(text: str | None) -> str | None:
    """A value without the line end of a file from Windows, which shells and containers hand on."""
    return text and text.rstrip("\r\n")


def _is_unknown(name: str, text: str) -> bool:
    return (
        name.startswith(_PREFIX)
        and name not in VARIABLES
        and name.removesuffix("_FILE") not in VARIABLES
        and not _OF_A_SERVICE.fullmatch(f"{name}={text}")
    )


def _unknown(name: str) -> str:
    similar = get_close_matches(name.removesuffix("_FILE"), VARIABLES, n=1, cutoff=0.8)
    return f"{name}: no such setting" + (f"; is {similar[0]} meant?" if similar else "")


def _contents(path: str) -> str:
    try:
        text = notation.decoded(Path(path).read_bytes()).rstrip("\r\n")
    except UnicodeDecodeError:
        raise Permanent("bad_file", f"{notation.shown_path(path)} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise Permanent("bad_file", f"cannot read {notation.shown_path(path)}: {reason}") from None
    if not text:
        raise Permanent("bad_file", f"{notation.shown_path(path)} is empty")
    return text
