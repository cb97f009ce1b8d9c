"""What `outkeep doctor` looks at, beyond the checks that it shares."""

import ast
import asyncio
import socket
import ssl
import symtable
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

import certifi
from redis import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

from app import deployment
from app.accept.spool import Spool
from app.core import findings as rules
from app.core.addresses import is_private, is_public
from app.core.bucket_faults import certificate_fault, lacking, redis_fault
from app.core.errors import ConfigurationError, OutkeepError
from app.core.findings import Finding, Level
from app.core.handlers import Call, FollowUp, Handler, Webhook, job_queues
from app.core.names import CLAIMS, HANDLE_QUEUE, QUARANTINE, Kind
from app.deployment import Deployment
from app.disk import KEY_FILE
from app.health import presence
from app.health.checks import Subject, disk, of_redis, spooled
from app.maintain.backlog import queues_of_users
from app.receive.keyring import fetch_secret
from app.settings import Settings, doubts, examine
from app.storage.identity import Identity
from app.storage.store import Storage
from app.valkey import running as embedded_trace
from app.valkey.client import connect, find_redis


def defines(source: bytes, name: str) -> bool:
    """Whether a module of this source has `name`, as far as that shows.

    Raises:
        SyntaxError: when it is no Python of this version; ValueError when it is no text.
    """
    text = decode_source(source)
    tree = ast.parse(text)
    stars = (node.names[0].name == "*" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    if any(stars):
        return True
    symbols = symtable.symtable(text, "?", "exec").get_symbols()
    known = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    return name in known or "__getattr__" in known


def missing(dotted: str, folder: Path) -> str | None:
    """Why a worker would not find a function, with `folder` on its path; None when it would.

    Also None for what does not show without running it: extension modules, and what a class holds.
    """
    parts = dotted.split(".")
    spec, depth = _module(parts[:-1], folder)
    if spec is None:
        return f"there is no module {parts[0]!r} in {folder} or among the installed packages"
    name = ".".join(parts[:depth])
    if spec.origin is None or not spec.origin.endswith(".py"):
        is_folder = spec.submodule_search_locations is not None
        return f"the folder {name!r} holds no {parts[depth]!r}" if is_folder else None
    try:
        found = defines(Path(spec.origin).read_bytes(), parts[depth])
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        return f"{spec.origin} is no Python ({error.msg}{line})"
    except (OSError, ValueError) as error:
        return f"{spec.origin} cannot be read ({type(error).__name__})"
    return None if found else f"{spec.origin} has no {parts[depth]!r}"


def _module(parts: Sequence[str], folder: Path) -> tuple[ModuleSpec | None, int]:
    """The deepest module that `parts` lead to, and how many of them its name has."""
    found: ModuleSpec | None = None
    for depth in range(len(parts)):
        inside = found.submodule_search_locations if found is not None else None
        if depth and inside is None:
            return found, depth
        spec = _spec(".".join(parts[: depth + 1]), inside, folder)
        if spec is None:
            return found, depth
        found = spec
    return found, len(parts)


def _spec(name: str, inside: Sequence[str] | None, folder: Path) -> ModuleSpec | None:
    """What Python would import; `inside` are the folders of the package, None at the top."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, inside)
        if spec is not None:
            return spec
    return PathFinder.find_spec(name, [str(folder)]) if inside is None else None


TIMEOUT = 5.0
"""Seconds after which a silent Redis is taken for dead."""

DOCTOR = "doctor"
"""Its role, of which nobody is told."""

_STORAGE = "OUTKEEP_STORAGE: "
_NAMES = {
    "webhook secret": {"REPLICATE_WEBHOOK_SECRET", "REPLICATE_API_TOKEN"},
    "token": {"REPLICATE_API_TOKEN"},
}
"""What is set wrong is not "not set": these checks say nothing then."""


def diagnose(environment: Mapping[str, str], code: Path) -> list[Finding]:
    """Run every check over the deployment that `environment` describes; `code` holds the user's functions."""
    settings, handlers, findings = _configuration(environment)
    findings += [Finding(Level.WARN, "sizes", doubt) for doubt in doubts(environment)]
    blamed = [one.detail.partition(":")[0] for one in findings if one.level is Level.FAIL]
    wrong = {name.removesuffix("_FILE") for name in blamed}
    findings += [one for one in _credentials(settings) if not wrong & _NAMES.get(one.check, set())]
    findings += [] if "REDIS_URL" in wrong else _where_closed("redis", lambda: _redis(settings, handlers))
    findings += _where_closed("embedded server", lambda: _left_behind(settings))
    findings += _where_closed("spool", lambda: _spool(settings))
    if not any(finding.detail.startswith((_STORAGE, "OUTKEEP_DATA: ")) for finding in findings):
        findings += _where_closed("storage", lambda: _storage(settings))
    findings += _where_closed("disk", lambda: _disks(settings))
    findings += [*_open_folders(settings), *_public_url(settings)]
    findings += [_handler(handler, settings, code) for handler in handlers]
    return findings


def _where_closed(check: str, find: Callable[[], list[Finding]]) -> list[Finding]:
    """What `find` finds, or that this user may not look there: the other checks go on."""
    try:
        return find()
    except PermissionError as error:
        detail = f"cannot look into {error.filename}: {error.strerror}; run this as the user of Outkeep"
        return [Finding(Level.FAIL, check, detail)]


def _configuration(environment: Mapping[str, str]) -> tuple[Settings, Sequence[Handler], list[Finding]]:
    try:
        settings, handlers = deployment.prepare(environment)
    except ConfigurationError as error:
        settings, refused = examine(environment)
        # What the storage itself says, its own check says as well.
        problems = [
            problem for problem in error.problems if problem in refused or not problem.startswith(_STORAGE)
        ]
        return settings, (), [Finding(Level.FAIL, "configuration", problem) for problem in problems]
    return settings, handlers, [Finding(Level.OK, "configuration", f"{len(handlers)} handlers")]


def _credentials(settings: Settings) -> list[Finding]:
    findings = []
    if settings.webhook_secret is None and settings.api_token is not None:
        findings.append(_fetched_secret(settings))
    elif settings.webhook_secret is None:
        who = "only Cog is received from" if settings.cog_token else "no receiver can run like this"
        detail = f"REPLICATE_WEBHOOK_SECRET is not set: {who}"
        findings.append(Finding(Level.WARN, "webhook secret", detail))
    else:
        findings.append(Finding(Level.OK, "webhook secret", f"{len(settings.webhook_keys)} in use"))
    if settings.cog_token is not None:
        findings.append(rules.cog_token(len(settings.cog_token.get_secret_value())))
    return [*findings, rules.token(settings.api_token is not None)]


def _fetched_secret(settings: Settings) -> Finding:
    """Whether a receiver of this configuration could fetch the secret now."""
    try:
        asyncio.run(fetch_secret(settings, timeout=TIMEOUT))
    except OutkeepError as error:
        return rules.secret_missing(error.message)
    return Finding(Level.OK, "webhook secret", "fetched with REPLICATE_API_TOKEN")


def _redis(settings: Settings, handlers: Sequence[Handler]) -> list[Finding]:
    """What Redis says, or why it says nothing: then work waits, and deliveries go to the spool."""
    try:
        url = find_redis(settings)
        keys = _keys(settings)
    except ConfigurationError as error:
        return [Finding(Level.FAIL, "redis", problem) for problem in error.problems]
    try:
        with closing(connect(url, timeout=TIMEOUT)) as redis:
            own = presence.process_of(Deployment(settings, url, keys, tuple(handlers)), DOCTOR)
            reconciles = None if settings.api_token is None else settings.reconciles
            identity, trouble = _identity(redis, settings)
            subject = Subject(own, identity, _users(redis, handlers), reconciles)
            return [*of_redis(redis, subject), *trouble]
    except AuthenticationError:
        detail = "it refuses the user or password of REDIS_URL"
    except BusyLoadingError:
        detail = "it is loading its data; wait"
    except RedisError as error:
        wrong = redis_fault(str(error))
        detail = wrong or (
            f"no answer ({type(error).__name__}): nothing is stored until it is back; is REDIS_URL right?"
        )
    return [Finding(Level.FAIL, "redis", detail)]


def _identity(redis: Redis, settings: Settings) -> tuple[Identity | None, list[Finding]]:
    """What tells whether Redis still holds what it held, and whether it belongs to this storage."""
    try:
        identity = Identity(redis, Storage(settings.storage_url))
        problem = identity.trouble()
    except (OutkeepError, ResponseError):
        return None, []  # the checks of the storage and of Redis say why
    return identity, [] if problem is None else [Finding(Level.FAIL, "storage id", problem)]


def _left_behind(settings: Settings) -> list[Finding]:
    """What waited in the embedded server when `REDIS_URL` was set: nobody works on it."""
    folder = settings.data / embedded_trace.FOLDER
    if settings.redis_url is None or not folder.is_dir():
        return []
    detail = (
        f"{folder} is what an embedded server has left, and what waited there is not in the Redis of "
        "REDIS_URL: run `outkeep up` without REDIS_URL until `outkeep ls` and `outkeep handlers` show "
        "nothing that waits, then remove it"
    )
    return [Finding(Level.WARN, "embedded server", detail)]


def _users(redis: Redis, handlers: Sequence[Handler]) -> Sequence[str]:
    """The queues that hold jobs of the user's."""
    try:
        return queues_of_users(handlers, redis)
    except ResponseError:  # the check of Redis says what it refuses
        return job_queues(handlers)


def _keys(settings: Settings) -> tuple[bytes, ...]:
    """The keys that sign; none when there are none yet: a doctor makes nothing."""
    if settings.secret_keys is not None:
        return settings.secret_keys
    return deployment.own_keys(settings.data) if (settings.data / KEY_FILE).exists() else ()


def _spool(settings: Settings) -> list[Finding]:
    if settings.spool == "off":
        detail = "OUTKEEP_SPOOL is off: while Redis is away, deliveries are refused, and lost after a minute"
        return [Finding(Level.WARN, "spool", detail)]
    folder = settings.data / "spool"
    if not folder.exists():
        return [Finding(Level.OK, "spool", "empty")]
    spool = Spool(folder, disk_floor=settings.disk_floor)
    with closing(spool):
        return spooled(spool, datetime.now(UTC))


def _storage(settings: Settings) -> list[Finding]:
    try:
        storage = Storage(settings.storage_url)
        if storage.folder is None or storage.folder.exists():
            storage.prove()
        elif problems := deployment.storage_problems(settings):  # which makes nothing, as the start would
            return [Finding(Level.FAIL, "storage", problems[0].removeprefix(_STORAGE))]
    except OutkeepError as error:
        return [Finding(Level.FAIL, "storage", error.message)]
    if lacks := lacking(storage.lacks):
        return [Finding(Level.WARN, "storage", f"{storage.url}: {lacks}")]
    return [Finding(Level.OK, "storage", storage.url)]


def _disks(settings: Settings) -> list[Finding]:
    """Whether there is room on the disks of the data and of the stored files, each disk once."""
    folders = [settings.data.absolute()]
    if urlsplit(settings.storage_url).scheme == "file":
        folders.append(Path(urlsplit(settings.storage_url).path))
    disks: dict[int, Finding] = {}
    for folder in folders:
        place = next(place for place in (folder, *folder.parents) if place.exists())
        disks.setdefault(place.stat().st_dev, disk(place, settings.disk_floor))
    return list(disks.values())


def _open_folders(settings: Settings) -> list[Finding]:
    """Whether other users of this host may look into folders that hold prompts and outputs."""
    data = settings.data.absolute()
    folders = [data, *(data / name for name in ("spool", "tmp", embedded_trace.FOLDER))]
    if urlsplit(settings.storage_url).scheme == "file":
        stored = Path(unquote(urlsplit(settings.storage_url).path))
        folders += [
            stored,
            *(stored / name for name in (*(kind.folder for kind in Kind), QUARANTINE, CLAIMS)),
        ]
    opened = [folder for folder in dict.fromkeys(folders) if _modes(folder) & settings.umask]
    if not opened:
        return [Finding(Level.OK, "folders", f"shared with {settings.share_files}")]
    detail = (
        f"prompts and outputs in {', '.join(map(str, opened))} can be read by other users of this host: "
        "close them with `chmod -R go-rwx`, or set OUTKEEP_SHARE_FILES"
    )
    return [Finding(Level.WARN, "folders", detail)]


def _modes(folder: Path) -> int:
    """What others than its owner may do with a folder; nothing with one that is not there."""
    try:
        return folder.stat().st_mode & 0o055
    except OSError:
        return 0


def _public_url(settings: Settings) -> list[Finding]:
    """Whether Replicate, which knows public CAs only, can trust what stands before us; as seen from here."""
    parts = urlsplit(settings.public_url or "")
    if parts.scheme != "https" or parts.hostname is None:
        return []
    public = ssl.create_default_context(cafile=certifi.where())  # not what this host trusts beside them
    try:
        with socket.create_connection((parts.hostname, parts.port or 443), timeout=TIMEOUT) as connection:
            public.wrap_socket(connection, server_hostname=parts.hostname).close()
    except ssl.SSLError as error:
        wrong = certificate_fault(str(error), cure="take one of a public CA", plain="serve https there")
        detail = f"{settings.public_url}: {wrong or error.reason}: Replicate delivers nothing there"
        return [Finding(Level.WARN, "public url", detail)]
    except OSError as error:
        detail = f"{settings.public_url} cannot be reached from here ({error.strerror or error})"
        return [Finding(Level.OK, "public url", f"{detail}, which may be as it should be")]
    return [Finding(Level.OK, "public url", f"{settings.public_url} shows a certificate of a public CA")]


def _handler(handler: Handler, settings: Settings, code: Path) -> Finding:
    """Whether a handler can be told, as far as that shows from here."""
    check = f"handler {handler.name}"
    match handler.target:
        case Webhook(url):
            return _webhook(check, url, settings)
        case Call(function, queue):
            trouble = missing(function, code) if queue == HANDLE_QUEUE else None
            return rules.function(handler.name, function, queue, trouble)
        case FollowUp(model):
            return Finding(Level.OK, check, f"predicts with {model}")


def _webhook(check: str, url: str, settings: Settings) -> Finding:
    """Whether notifications may connect to a URL: each of its addresses counts, as it does for them."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if settings.proxy is not None and not _is_address(host):
        return Finding(Level.OK, check, f"{host} is looked up by the proxy")
    try:
        found = socket.getaddrinfo(host, parts.port or parts.scheme, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding(Level.WARN, check, f"{host} cannot be looked up: {error.strerror or error}")
    for *_, place in found:
        address = ip_address(place[0])
        if not is_public(address) and not (settings.notify_private and is_private(address)):
            detail = f"{host} is {address}, which is not public: it is never told"
            remedy = "; set OUTKEEP_NOTIFY_PRIVATE=true to allow it" if is_private(address) else ""
            return Finding(Level.FAIL, check, detail + remedy)
    return Finding(Level.OK, check, f"{host} may be connected to")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
