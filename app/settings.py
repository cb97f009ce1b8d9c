"""The configuration: one frozen object made at start, refused with every mistake named at once."""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from redis import Redis
from redis.exceptions import RedisError

from app.core import notation
from app.core.errors import ConfigurationError, Permanent
from app.core.hosts import AllowedHosts, HostRules
from app.core.links import parse_secret_keys
from app.core.signature import VerifyingKey, parse_verifying_keys

_PREFIX = "OUTKEEP_"
_OF_A_SERVICE = re.compile(
    r"OUTKEEP_(\w+_)?("
    r"SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=(tcp|udp|sctp)://.*|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?=.*"
    r"|NAME=/.*|ENV_\w+=.*)",
    re.ASCII | re.DOTALL,
)
"""What Kubernetes, and Docker's links, set for a service called `outkeep` or `outkeep-…`."""

_SHORTEST_RECORD_TTL = 2 * 3600


def _with_reason(parse: Callable[[str], Any]) -> BeforeValidator:
    """Let pydantic show the message of our own error and nothing of the value."""

    def validate(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except Permanent as error:
            raise ValueError(error.message) from None

    return BeforeValidator(validate)


def _redis_url(text: str) -> str:
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
    return notation.duration(text)


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


Size = Annotated[ByteSize, _with_reason(notation.size)]
Token = Annotated[SecretStr, _with_reason(_token)]
OwnToken = Annotated[SecretStr, _with_reason(_own_token)]
"""One that others show to us: of any words."""
FilePath = Annotated[Path, _with_reason(_path)]
ApiUrl = Annotated[str, _with_reason(notation.api_url)]
BaseUrl = Annotated[str, _with_reason(notation.base_url)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], _with_reason(str.lower)]


class Settings(BaseModel):
    """Every setting, named after its meaning; the alias is the environment variable.

    Durations are in seconds, sizes in bytes. Secrets do not show in `repr`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        validate_default=True,
    )

    webhook_secret: Annotated[SecretStr, _with_reason(_webhook_secret)] | None = Field(
        None, alias="REPLICATE_WEBHOOK_SECRET"
    )
    api_token: Token | None = Field(None, alias="REPLICATE_API_TOKEN")
    api_url: ApiUrl = Field("https://api.replicate.com", alias="REPLICATE_BASE_URL")
    redis_url: Annotated[str, _with_reason(_redis_url)] | None = Field(None, alias="REDIS_URL", repr=False)
    data: FilePath = Field(Path("data"), alias="OUTKEEP_DATA")
    storage: Annotated[str, _with_reason(notation.storage_url)] | None = Field(None, alias="OUTKEEP_STORAGE")
    public_url: BaseUrl | None = Field(None, alias="OUTKEEP_PUBLIC_URL")
    admin_token: OwnToken | None = Field(None, alias="OUTKEEP_ADMIN_TOKEN")
    secret_keys: Annotated[tuple[bytes, ...], _with_reason(parse_secret_keys)] | None = Field(
        None, alias="OUTKEEP_SECRET_KEY", repr=False
    )
    handlers: FilePath | None = Field(None, alias="OUTKEEP_HANDLERS")
    output_hosts: Annotated[HostRules, _with_reason(HostRules.parse)] = Field(
        "replicate.delivery *.replicate.delivery storage.googleapis.com",  # type: ignore[assignment]
        alias="OUTKEEP_OUTPUT_HOSTS",
    )
    notify_private: bool = Field(default=False, alias="OUTKEEP_NOTIFY_PRIVATE")
    keep_inputs: bool = Field(default=False, alias="OUTKEEP_KEEP_INPUTS")
    retention: Annotated[int, _with_reason(_retention)] | None = Field(None, alias="OUTKEEP_RETENTION", gt=0)
    max_body: Size = Field(ByteSize(32 << 20), alias="OUTKEEP_MAX_BODY", gt=0)
    max_file: Size = Field(ByteSize(10 << 30), alias="OUTKEEP_MAX_FILE", gt=0)
    reconcile: Literal["all", "known", "off"] | None = Field(None, alias="OUTKEEP_RECONCILE")
    reconcile_notify: bool = Field(default=True, alias="OUTKEEP_RECONCILE_NOTIFY")
    slots: int = Field(256, alias="OUTKEEP_SLOTS", ge=1, le=1000)
    max_files: int = Field(1000, alias="OUTKEEP_MAX_FILES", ge=1)
    disk_floor: Size | None = Field(None, alias="OUTKEEP_DISK_FLOOR")
    record_ttl: Annotated[int, _with_reason(_record_ttl)] = Field(7 * 86400, alias="OUTKEEP_RECORD_TTL")
    spool: Literal["on", "off"] = Field("on", alias="OUTKEEP_SPOOL")
    allowed_hosts: Annotated[AllowedHosts, _with_reason(AllowedHosts.parse)] | None = Field(
        None, alias="OUTKEEP_ALLOWED_HOSTS"
    )
    share_files: Literal["nobody", "group", "everybody"] = Field("nobody", alias="OUTKEEP_SHARE_FILES")
    storage_public_url: BaseUrl | None = Field(None, alias="OUTKEEP_STORAGE_PUBLIC_URL")
    proxy: Annotated[SecretStr, _with_reason(_proxy)] | None = Field(None, alias="OUTKEEP_PROXY")
    cog_token: OwnToken | None = Field(None, alias="OUTKEEP_COG_TOKEN")
    store_secrets: tuple[SecretStr, ...] = ()
    """What the storage's own variables hold that nobody may see; the storage reads them itself."""
    host: Annotated[str, _with_reason(notation.listen_host)] = Field("127.0.0.1", alias="HOST")
    port: int = Field(8000, alias="PORT", ge=0, le=65535)
    log_level: LogLevel = Field("info", alias="LOG_LEVEL")
    log_format: Literal["json", "text"] | None = Field(None, alias="LOG_FORMAT")
    forwarded_allow_ips: Annotated[str, _with_reason(notation.trusted_proxies)] = Field(
        "127.0.0.1", alias="FORWARDED_ALLOW_IPS"
    )

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


VARIABLES: dict[str, str] = {
    field.alias: name for name, field in Settings.model_fields.items() if field.alias is not None
}
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


_WORDS = {
    "bool_parsing": "write true or false",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be {ge} or more",
    "int_parsing": "write a whole number",
    "less_than_equal": "it must be {le} or less",
    "literal_error": "write {expected}",
}
"""What pydantic says in the words of a programmer, by its type of error."""


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
    values["store_secrets"] = tuple(environment[name] for name in STORE_SECRETS if environment.get(name))
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]): _explain(detail) for detail in error.errors(include_input=False)}
        problems += [f"{name}: {reason}" for name, reason in wrong.items()]
        settings = Settings.model_validate({key: value for key, value in values.items() if key not in wrong})
    return settings, problems


def doubts(environment: Mapping[str, str]) -> list[str]:
    """What is accepted, and can hardly be meant: one line for each such setting."""
    values, _ = _read(environment)
    found = {name: str(values.get(name, "")).strip() for name in SIZES}
    return [
        f"{name}: a number alone is bytes, and {text} of them are hardly meant; write a unit: {text}MiB"
        for name, text in found.items()
        if notation.lacks_unit(text)
    ]


def _read(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
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


def _explain(detail: ErrorDetails) -> str:
    words = _WORDS.get(detail["type"])
    return words.format(**detail.get("ctx", {})) if words else detail["msg"].removeprefix("Value error, ")
