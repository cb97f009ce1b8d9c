"""The configuration: one frozen object made at start, refused with every mistake named at once."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr, ValidationError

from app.core.errors import ConfigurationError, Permanent
from app.core.hosts import HostRules
from app.core.keys import VerifyingKey, parse_verifying_keys
from app.core.links import parse_secret_keys

_PREFIX = "OUTKEEP_"
_DURATION = re.compile(r"(\d+)\s*(s|m|h|d|w)?", re.ASCII)
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_STORAGE_SCHEMES = ("file", "s3", "gs", "az")
_REDIS_SCHEMES = ("redis", "rediss", "unix")


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


def _duration(text: str) -> int:
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise Permanent("bad_duration", "write a whole number of s, m, h, d or w, such as 30d")
    return int(match[1]) * _SECONDS[match[2]]


def _url(schemes: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            scheme = urlsplit(text).scheme
        except ValueError:
            scheme = ""
        if scheme not in schemes or "://" not in text:
            raise Permanent("bad_url", f"it must start with {', '.join(f'{known}://' for known in schemes)}")
        return text.rstrip("/")

    return parse


def _webhook_secret(text: str) -> SecretStr:
    parse_verifying_keys(text)
    return SecretStr(text)


Duration = Annotated[int, _with_reason(_duration)]
HttpUrl = Annotated[str, _with_reason(_url(("https", "http")))]


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
    api_token: SecretStr | None = Field(None, alias="REPLICATE_API_TOKEN", min_length=1)
    api_url: HttpUrl = Field("https://api.replicate.com", alias="REPLICATE_BASE_URL")
    redis_url: Annotated[str, _with_reason(_url(_REDIS_SCHEMES))] | None = Field(
        None, alias="REDIS_URL", repr=False
    )
    data: Path = Field(Path("data"), alias="OUTKEEP_DATA")
    storage: Annotated[str, _with_reason(_url(_STORAGE_SCHEMES))] | None = Field(
        None, alias="OUTKEEP_STORAGE"
    )
    public_url: HttpUrl | None = Field(None, alias="OUTKEEP_PUBLIC_URL")
    admin_token: SecretStr | None = Field(None, alias="OUTKEEP_ADMIN_TOKEN", min_length=1)
    secret_keys: Annotated[tuple[bytes, ...], _with_reason(parse_secret_keys)] | None = Field(
        None, alias="OUTKEEP_SECRET_KEY", repr=False
    )
    handlers: Path | None = Field(None, alias="OUTKEEP_HANDLERS")
    output_hosts: Annotated[HostRules, _with_reason(HostRules.parse)] = Field(
        "replicate.delivery *.replicate.delivery storage.googleapis.com",  # type: ignore[assignment]
        alias="OUTKEEP_OUTPUT_HOSTS",
    )
    notify_private: bool = Field(default=False, alias="OUTKEEP_NOTIFY_PRIVATE")
    keep_inputs: bool = Field(default=False, alias="OUTKEEP_KEEP_INPUTS")
    retention: Duration | None = Field(None, alias="OUTKEEP_RETENTION", gt=0)
    max_body: ByteSize = Field(ByteSize(32 << 20), alias="OUTKEEP_MAX_BODY", gt=0)
    max_file: ByteSize = Field(ByteSize(10 << 30), alias="OUTKEEP_MAX_FILE", gt=0)
    reconcile: Literal["all", "known", "off"] | None = Field(None, alias="OUTKEEP_RECONCILE")
    reconcile_notify: bool = Field(default=True, alias="OUTKEEP_RECONCILE_NOTIFY")
    slots: int = Field(64, alias="OUTKEEP_SLOTS", ge=1, le=1000)
    max_files: int = Field(1000, alias="OUTKEEP_MAX_FILES", ge=1)
    disk_floor: ByteSize | None = Field(None, alias="OUTKEEP_DISK_FLOOR")
    record_ttl: Duration = Field(7 * 86400, alias="OUTKEEP_RECORD_TTL", ge=7200)
    spool: Literal["on", "off"] = Field("on", alias="OUTKEEP_SPOOL")
    allowed_hosts: str | None = Field(None, alias="OUTKEEP_ALLOWED_HOSTS")
    storage_public_url: HttpUrl | None = Field(None, alias="OUTKEEP_STORAGE_PUBLIC_URL")
    proxy: SecretStr | None = Field(None, alias="OUTKEEP_PROXY")
    cog_token: SecretStr | None = Field(None, alias="OUTKEEP_COG_TOKEN", min_length=1)
    host: str = Field("127.0.0.1", alias="HOST", min_length=1)
    port: int = Field(8000, alias="PORT", ge=0, le=65535)
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", alias="LOG_LEVEL")
    log_format: Literal["json", "text"] | None = Field(None, alias="LOG_FORMAT")
    forwarded_allow_ips: str = Field("127.0.0.1", alias="FORWARDED_ALLOW_IPS")

    @property
    def storage_url(self) -> str:
        """Where outputs go; by default a folder below the data."""
        return self.storage or (self.data / "outputs").absolute().as_uri()

    @property
    def base_url(self) -> str:
        """What links to us start with."""
        return self.public_url or f"http://{self.host}:{self.port}"

    @property
    def webhook_keys(self) -> tuple[VerifyingKey, ...]:
        """The keys that a delivery may be signed with; empty when no secret is set."""
        return parse_verifying_keys(self.webhook_secret.get_secret_value()) if self.webhook_secret else ()

    @property
    def temporary(self) -> Path:
        """Where downloads wait until they are stored."""
        return self.data / "tmp"


VARIABLES: dict[str, str] = {str(field.alias): name for name, field in Settings.model_fields.items()}
"""Environment variable → attribute of `Settings`."""


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
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        wrong = {
            str(detail["loc"][0]): _explain(detail["msg"]) for detail in error.errors(include_input=False)
        }
        problems += [f"{name}: {reason}" for name, reason in wrong.items()]
        settings = Settings.model_validate({key: value for key, value in values.items() if key not in wrong})
    return settings, problems


def _read(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    values: dict[str, str] = {}
    problems = [
        f"{name}: no such setting; {_PREFIX}* names are checked so that a misspelt one is not ignored"
        for name in sorted(environment)
        if name.startswith(_PREFIX) and name.removesuffix("_FILE") not in VARIABLES
    ]
    for name in VARIABLES:
        path = environment.get(f"{name}_FILE")
        if path and name in environment:
            problems.append(f"{name}: set both directly and by {name}_FILE; keep one of them")
        elif path:
            try:
                values[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                problems.append(f"{name}_FILE: cannot read {path}: {reason}")
        elif name in environment and (environment[name] or name == "REPLICATE_WEBHOOK_SECRET"):
            values[name] = environment[name]
    return values, problems


def _explain(message: str) -> str:
    return message.removeprefix("Value error, ")
