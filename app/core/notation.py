"""How people write durations, sizes and addresses; no message repeats what may hold a password."""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from decimal import Decimal
from ipaddress import ip_network
from urllib.parse import SplitResult, parse_qs, urlsplit

from app.core.errors import Permanent
from app.core.hosts import is_host

_DURATION = re.compile(r"(?:\d{1,9}\s*[smhdw]\s*)+|\d{1,9}", re.ASCII)
_PART_OF_DURATION = re.compile(r"(\d+)\s*([smhdw]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST_DURATION = 60
_LONGEST = 100 * 365 * 86400
_SHORTEST_RUN, _LONGEST_RUN = 5, 86400
_DATABASE = re.compile(r"/?|/[0-9]{1,6}/?", re.ASCII)
_CHANGES_ANSWERS = frozenset((
    "cache", "cache_config", "command_packer", "decode_responses", "encoder_class", "encoding",
    "encoding_errors", "legacy_responses", "parser_class", "protocol", "retry", "retry_on_error",
))  # fmt: skip
_REDIS_PARAMETERS = frozenset((
    "client_name", "db", "health_check_interval", "password", "retry_on_timeout", "socket_connect_timeout",
    "socket_keepalive", "socket_read_size", "socket_timeout", "username",
))  # fmt: skip
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(b|kb|mb|gb|tb|kib|mib|gib|tib)?", re.ASCII)
_LARGEST = 1 << 60
_BYTES = {
    None: 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}


def shown_path(text: str) -> str:
    """The path of a file as messages show it: some put the secret itself where its path belongs."""
    return text if text.startswith(("/", "./", "../", "~")) else "the file that it names"


def decoded(data: bytes) -> str:
    """The text in a file: UTF-8 with or without a byte order mark, or what Windows calls Unicode.

    Raises `UnicodeDecodeError`.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if len(data) > len(BOM_UTF16_LE) and data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            return data.decode("utf-16")
        raise


def require_one_line(text: str) -> None:
    """Refuse what would be part of a path or an address, and not be seen; raises `Permanent`."""
    if text != text.strip() or any(letter < " " or letter == "\x7f" for letter in text):
        raise Permanent("bad_text", "it begins or ends with a blank, or holds a line end; copy it anew")


def duration(text: str) -> int:
    """Seconds in `30d`, `1h30m`, `45` and the like; raises `Permanent`, also for more than a century."""
    match = _DURATION.fullmatch(text.strip().lower()) if len(text) <= _LONGEST_DURATION else None
    if match is None:
        raise Permanent("bad_duration", "write a whole number of s, m, h, d or w, such as 30d")
    seconds = sum(int(count) * _SECONDS[unit] for count, unit in _PART_OF_DURATION.findall(match[0]))
    if seconds > _LONGEST:
        raise Permanent("bad_duration", "that is more than a hundred years")
    return seconds


def size(text: str) -> int:
    """Bytes in `512MiB`, `1.5GB`, `1048576` and the like; raises `Permanent` for anything else."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise Permanent("bad_size", "write a number of B, KiB, MiB, GiB or TiB, such as 512MiB")
    found = int(Decimal(match[1]) * _BYTES[match[2]])
    if found > _LARGEST:
        raise Permanent("bad_size", "no disk holds that much; write a size such as 512MiB")
    return found


def shown_size(size: float) -> str:
    """A number of bytes as people read it, and as `size` does: `512B`, `32.0MiB`."""
    units = iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = "B"
    while abs(size) >= 1024 and unit != "PiB":  # noqa: PLR2004
        size, unit = size / 1024, next(units)
    return f"{size:.0f}B" if unit == "B" else f"{size:.1f}{unit}"


def lacks_unit(text: str) -> bool:
    """Whether a size is so small a number alone that its unit was forgotten: it would be bytes."""
    match = _SIZE.fullmatch(text.strip().lower())
    return match is not None and match[2] is None and 0 < float(match[1]) < _BYTES["mib"]


def cancel_after(text: str) -> str:
    """A duration of 5 s to 24 h as Replicate's header `Cancel-After` has it, `1h30m`; raises `Permanent`."""
    seconds = duration(text)
    if not _SHORTEST_RUN <= seconds <= _LONGEST_RUN:
        raise Permanent("bad_duration", "Replicate takes 5s to 24h, such as 10m")
    minutes, rest = divmod(seconds, 60)
    parts = ((minutes // 60, "h"), (minutes % 60, "m"), (rest, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def in_words(seconds: int) -> str:
    """A duration as `duration` reads it, in the largest unit that leaves no rest: `7d`, `90m`."""
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % _SECONDS[unit] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"


def http_url(text: str) -> str:
    """An http or https URL, exactly as given; raises `Permanent`."""
    _require_host(_split(text, ("https", "http")))
    return text


def base_url(text: str) -> str:
    """What URLs begin with: scheme, host, perhaps port and path, no slash at the end; raises `Permanent`."""
    url = http_url(text).rstrip("/")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise Permanent("bad_url", "it must not hold a user name or password: whoever gets a link sees it")
    if "?" in url or "#" in url:
        raise Permanent("bad_url", "it must end with its host or path, without ? and #")
    return url


def api_url(text: str) -> str:
    """Where Replicate's API begins, as `base_url`; clients 2.x write `/v1` at its end. Raises `Permanent`."""
    url = base_url(text)
    return url.removesuffix("/v1").rstrip("/") if urlsplit(url).path else url


def proxy_url(text: str) -> str:
    """`http://host:port`, perhaps with `user:password@` before the host; raises `Permanent`."""
    parts = _split(text, ("http",))
    _require_host(parts)
    if not parts.port or parts.path.strip("/") or "?" in text or "#" in text:
        raise Permanent("bad_url", "write http://host:port, or http://user:password@host:port")
    return text.rstrip("/")


def listen_host(text: str) -> str:
    """An address or name to listen on; raises `Permanent`."""
    if not is_host(text):
        hint = "; write an IPv6 address without brackets" if text.startswith("[") else ""
        raise Permanent("bad_host", f"it is neither an address nor a host name{hint}")
    return text


def trusted_proxies(text: str) -> str:
    """Addresses and networks separated by commas, or `*` for all; raises `Permanent`."""
    for entry in text.split(","):
        try:
            _ = entry.strip() == "*" or ip_network(entry.strip())
        except ValueError:
            raise Permanent(
                "bad_host",
                "write addresses or networks with commas between, such as 127.0.0.1,10.0.0.0/8, or *",
            ) from None
    return text


def redis_url(text: str) -> str:
    """The URL of a Redis, as far as its form goes; raises `Permanent`."""
    parts = _split(text, ("redis", "rediss", "unix"))
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise Permanent("bad_url", "it names no socket; write unix:///path/of/the/socket")
    if parts.hostname:
        _require_host(parts)
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        # The client would take another database without a word.
        raise Permanent(
            "bad_url", "what follows its host is no number of a database, such as redis://host:6379/0"
        )
    _require_plain_answers(parts)
    return text.rstrip("/")


def _require_plain_answers(parts: SplitResult) -> None:
    """Refuse parameters that change what the client gives back, or do nothing that is known of.

    Only names of the client's own are repeated: what looks like a parameter may be the rest of a password.
    """
    for name in parse_qs(parts.query):
        if name in _CHANGES_ANSWERS:
            raise Permanent("bad_url", f"{name} changes what the answers of Redis look like; leave it out")
        if name not in _REDIS_PARAMETERS and not (name.startswith("ssl_") and "ocsp" not in name):
            raise Permanent(
                "bad_url",
                "the client cannot read it; is a parameter misspelt? In a password, write ? as %3F",
            )


def storage_url(text: str) -> str:
    """The URL of an object store without a slash at its end; raises `Permanent`."""
    parts = _split(text, ("file", "s3", "gs", "az"))
    if "@" in parts.netloc:
        raise Permanent("bad_url", "it must not hold credentials; set the variables of the store instead")
    if "?" in text or "#" in text:
        raise Permanent("bad_url", "it must not hold ? or #; in the path of a folder write %3F or %23")
    if parts.scheme == "file":
        # In `file://data/outputs` the folder `data` would be taken for a host and be lost.
        if parts.netloc or not parts.path.strip("/"):
            raise Permanent("bad_url", "write file:///absolute/path, with three slashes")
    elif not parts.netloc:
        raise Permanent("bad_url", f"it names no bucket; write {parts.scheme}://bucket/prefix")
    return text.rstrip("/")


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult:
    known = " or ".join(f"{scheme}://" for scheme in schemes)
    require_one_line(text)
    if not text.startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise Permanent("bad_url", f"it must start with {known}")
    try:
        parts = urlsplit(text)
        _ = parts.port  # parsed, and refused, only when it is asked for
    except ValueError:
        raise Permanent(
            "bad_url", "its host or port cannot be read; in a password, write special characters as %XX"
        ) from None
    return parts


def _require_host(parts: SplitResult) -> None:
    if not parts.hostname:
        raise Permanent("bad_url", "it names no host")
    if not is_host(parts.hostname):
        raise Permanent("bad_url", "its host is neither an address nor a name that can be looked up")
