"""What a process starts with: settings, handlers, keys and the address of Redis, all proven at once."""

import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.clock import Clock
from app.core import handlers as handlers_file
from app.core import notation
from app.core.errors import ConfigurationError, Permanent, Transient
from app.core.handlers import Handler
from app.core.links import parse_secret_keys
from app.disk import KEY_FILE, fsync, make_folder, owner_problems, prove_writable, require_owner
from app.settings import Settings, examine
from app.valkey.client import find_redis
from app.valkey.processes import in_child

DEFAULT_HANDLERS = Path("outkeep.toml")


@dataclass(frozen=True)
class Deployment:
    """Everything a composition root needs."""

    settings: Settings
    redis_url: str = field(repr=False)
    secret_keys: tuple[bytes, ...] = field(repr=False)
    handlers: tuple[Handler, ...]
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)


def prepare(
    environment: Mapping[str, str], *, receives: bool = False, forks: bool = False, is_small: bool = False
) -> tuple[Settings, tuple[Handler, ...]]:
    """Read and prove the configuration of a process that stores or receives; what it makes is for its user.

    A process that `forks` later leaves the storage alone: the client of a bucket starts threads. It runs
    functions of others, creates no prediction, and so needs no token. One that `is_small` has no use for
    the storage, and does not load what it takes.

    Raises:
        ConfigurationError: with one line for each mistake in settings, handlers file and storage.
    """
    settings, handlers, problems = prove(environment, receives=receives, forks=forks, is_small=is_small)
    if problems:
        raise ConfigurationError(problems)
    os.umask(settings.umask)
    return settings, handlers


def prove(
    environment: Mapping[str, str], *, receives: bool = False, forks: bool = False, is_small: bool = False
) -> tuple[Settings, tuple[Handler, ...], list[str]]:
    """Settings, handlers, and what keeps such a process from starting: one line for each; makes nothing."""
    settings, problems = examine(environment)
    found, mistakes = _handlers(settings, environment)
    problems += mistakes
    proofs = ("REPLICATE_WEBHOOK_SECRET", "OUTKEEP_COG_TOKEN", "REPLICATE_API_TOKEN")
    nobody = settings.webhook_secret is None and settings.cog_token is None and settings.api_token is None
    if receives and nobody and not _blames(problems, *proofs):
        problems.append(
            "REPLICATE_WEBHOOK_SECRET: not set, so no delivery could be verified; set REPLICATE_API_TOKEN, "
            "with which it is fetched, or copy the signing secret (whsec_…) from your Replicate account"
        )
    if not forks and not _blames(problems, "REPLICATE_API_TOKEN"):
        problems += _token_problems(settings, found)
    if not _blames(problems, "OUTKEEP_SECRET_KEY"):
        problems += _key_problems(settings)
    if unwritable := _write_problems("OUTKEEP_DATA", settings.data):
        problems += unwritable
    elif not _blames(problems, "OUTKEEP_STORAGE"):
        problems += in_child(storage_problems, settings) if forks or is_small else storage_problems(settings)
    return settings, found, problems


def _key_problems(settings: Settings) -> list[str]:
    if settings.redis_url is None or settings.secret_keys is not None:
        return []
    own = (settings.data / KEY_FILE).absolute()
    cure = "set the same 32 random bytes or more everywhere, for example from `openssl rand -hex 32`"
    if os.access(own, os.F_OK):
        # Links and contexts that stand out there were made with it.
        cure = f"set OUTKEEP_SECRET_KEY_FILE={own}, the key used so far, and give every host the same"
    return [f"OUTKEEP_SECRET_KEY: needed together with REDIS_URL, since all hosts must sign alike; {cure}"]


def signing_keys(settings: Settings) -> tuple[bytes, ...]:
    """The keys that links and contexts are signed with; raises `ConfigurationError`."""
    if problems := _key_problems(settings):
        raise ConfigurationError(problems)
    return settings.secret_keys or own_keys(settings.data)


def _token_problems(settings: Settings, found: tuple[Handler, ...]) -> list[str]:
    """What is wanted that nobody could do without a token."""
    if settings.api_token is not None:
        return []
    problems = []
    if settings.reconcile in {"all", "known"}:
        problems.append(
            f"OUTKEEP_RECONCILE: {settings.reconcile!r} needs REPLICATE_API_TOKEN, which is not set; set it, "
            "or leave OUTKEEP_RECONCILE out"
        )
    if callers := handlers_file.needs_token(found):
        problems.append(
            f"REPLICATE_API_TOKEN: not set, and handler {callers[0]!r} creates predictions with it (predict)"
        )
    return problems


def connect(
    settings: Settings, handlers: tuple[Handler, ...], find: Callable[[Settings], str] = find_redis
) -> Deployment:
    """Find Redis and the keys; raises `ConfigurationError` when either is missing."""
    return Deployment(settings, find(settings), settings.secret_keys or own_keys(settings.data), handlers)


def own_keys(data: Path) -> tuple[bytes, ...]:
    """The keys of an embedded deployment, made once in `<data>/secret.key`.

    Raises:
        ConfigurationError: when the file can be neither read nor made.
    """
    path = data / KEY_FILE
    try:
        if not path.exists():
            require_owner(data)
            _make_key(path)
        return parse_secret_keys(notation.decoded(path.read_bytes()))
    except ConfigurationError:
        raise
    except OSError as error:
        problem = f"OUTKEEP_DATA: cannot read or make {path}: {error.strerror}"
        raise ConfigurationError(owner_problems("OUTKEEP_DATA", data, os.geteuid()) or [problem]) from None
    except (UnicodeDecodeError, Permanent):
        raise ConfigurationError([f"{path}: cannot be read as a key; restore it from a backup"]) from None


def _make_key(path: Path) -> None:
    make_folder(path.parent)
    # A name of chance: a draft that a killed process left behind must not stand in the way.
    descriptor, draft = tempfile.mkstemp(prefix=f"{KEY_FILE}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(draft)  # whoever links first wins; nobody ever sees half a key
    finally:
        Path(draft).unlink()
    fsync(path.parent)


def _handlers(settings: Settings, environment: Mapping[str, str]) -> tuple[tuple[Handler, ...], list[str]]:
    path = settings.handlers
    if path is None and not DEFAULT_HANDLERS.exists():
        return (), []
    path = path or DEFAULT_HANDLERS
    try:
        return handlers_file.parse(notation.decoded(path.read_bytes()), _secret_reader(environment)), []
    except OSError as error:
        return (), [f"OUTKEEP_HANDLERS: cannot read {path}: {error.strerror}"]
    except UnicodeDecodeError:
        return (), [f"OUTKEEP_HANDLERS: {path} is not UTF-8 text"]
    except ConfigurationError as error:
        return (), [f"OUTKEEP_HANDLERS: {path}: {problem}" for problem in error.problems]


def _secret_reader(environment: Mapping[str, str]) -> handlers_file.ReadSecret:
    def read(reference: str) -> str:
        kind, _, place = reference.partition(":")
        if place.startswith(("whsec_", "whsk_")):
            # Its place would be named in what follows.
            raise Permanent(
                "bad_secret", f"what follows {kind}: is a secret itself; write it without {kind}:"
            )
        if kind == "env":
            if place not in environment:
                raise Permanent("bad_secret", f"the environment variable {place} is not set")
            return environment[place].strip()
        if kind == "file":
            return _contents(Path(place).expanduser())
        return reference

    return read


def _contents(path: Path) -> str:
    try:
        text = notation.decoded(path.read_bytes()).strip()
    except OSError as error:
        raise Permanent("bad_secret", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Permanent("bad_secret", f"cannot read {path}: it is not plain text") from None
    except ValueError:
        raise Permanent("bad_secret", "no file has such a name") from None
    if not text.isascii():
        raise Permanent("bad_secret", f"cannot read {path}: it is not plain text")
    return text


def storage_problems(settings: Settings) -> list[str]:
    """What an operator must mend. An outage of a remote store is none: receiving goes on, and work waits."""
    from app.storage.store import Storage  # heavy, and `up` leaves this to a child

    try:
        storage = Storage(settings.storage_url)
        if storage.folder is not None:
            return _write_problems("OUTKEEP_STORAGE", storage.folder) + _cdn_problems(settings)
        with suppress(Transient):
            storage.prove()
    except Permanent as error:
        return [f"OUTKEEP_STORAGE: {error.message}"]
    return []


def _cdn_problems(settings: Settings) -> list[str]:
    if settings.storage_public_url is None:
        return []
    return ["OUTKEEP_STORAGE_PUBLIC_URL: only a bucket can lie behind it; unset it, or set OUTKEEP_STORAGE"]


def _write_problems(name: str, folder: Path) -> list[str]:
    if foreign := owner_problems(name, folder, os.geteuid()):
        return foreign
    try:
        prove_writable(folder)
    except OSError as error:
        return [f"{name}: cannot write to {folder}: {error.strerror}; check its owner and mode"]
    return []


def _blames(problems: list[str], *names: str) -> bool:
    return any(problem.startswith(names) for problem in problems)
