"""How the processes of one deployment describe themselves, and in what they differ."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.core.findings import Finding, Level
from app.core.handlers import Handler
from app.core.signature import PrivateKey, SharedKey

RECEIVER = "receiver"
"""The role of what receives; that of a worker is the name of its queue."""

_NAMED = 3


@dataclass(frozen=True)
class Process:
    """One process. Fingerprints tell values apart and say nothing about them.

    `keys` are those of the secret keys, `handlers` those of each handler by its name, `storage` is the id of
    the storage, None while it is not known.
    """

    role: str
    host: str
    pid: int
    version: str
    keys: tuple[str, ...]
    handlers: Mapping[str, str]
    storage: str | None

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.role}:{self.host}:{self.pid}"

    def to_json(self) -> str:
        """What `read` reads."""
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})


def read(data: bytes) -> Process | None:
    """A process out of JSON; None for what is none: whoever can write to Redis can write anything."""
    try:
        found = json.loads(data)
        return Process(
            role=str(found["role"]),
            host=str(found["host"]),
            pid=int(found["pid"]),
            version=str(found["version"]),
            keys=tuple(map(str, found["keys"])),
            handlers={str(name): str(value) for name, value in found["handlers"].items()},
            storage=None if found["storage"] is None else str(found["storage"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def fingerprints(handlers: Sequence[Handler]) -> dict[str, str]:
    """Name of each handler → a word that tells two of them apart, their secrets included."""
    return {handler.name: hashlib.sha256(_spelled(handler).encode()).hexdigest()[:16] for handler in handlers}


def _spelled(value: object) -> str:
    """A text that is the same in every process; `repr` hides secrets, and sets have no order."""
    if isinstance(value, SharedKey | PrivateKey):
        return value.sign(b"outkeep fingerprint").hex()
    if isinstance(value, frozenset | set):
        return f"{{{','.join(sorted(map(_spelled, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{','.join(sorted(f'{_spelled(key)}:{_spelled(item)}' for key, item in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_spelled, value))}]"
    fields: Iterable[str] = getattr(value, "__dataclass_fields__", ())
    if fields:
        inner = ",".join(f"{name}={_spelled(getattr(value, name))}" for name in fields)
        return f"{type(value).__name__}({inner})"
    return repr(value)


COMPARED: Mapping[str, Callable[[Process, Process], bool]] = {
    "keys": lambda own, one: bool(own.keys) and not set(own.keys) & set(one.keys),
    "handlers": lambda own, one: one.handlers != own.handlers,
    "storage": lambda own, one: None not in (own.storage, one.storage) and own.storage != one.storage,
    "version": lambda own, one: one.version != own.version,
}
"""In what processes may differ, and how that shows. Keys agree when they share one."""


def differing(own: Process, others: Sequence[Process]) -> dict[str, list[Process]]:
    """In what others differ from us → who: `keys`, `handlers`, `storage` or `version`."""
    found = {what: [one for one in others if differs(own, one)] for what, differs in COMPARED.items()}
    return {what: them for what, them in found.items() if them}


def compared(own: Process, others: Sequence[Process], *, last_key: str | None = None) -> list[Finding]:
    """Say who differs from us, and in what; a difference that loses something or shows to users fails.

    `last_key` is the fingerprint that signed last on this Redis: of a process that says nothing of itself, or
    has ended.
    """
    found = differing(own, others)
    findings = []
    if "keys" in found:
        detail = (
            f"OUTKEEP_SECRET_KEY has none of the keys of {_listed(found['keys'])}: links that one signs do "
            "not open at the other; set the same keys everywhere, and rotate them in three steps "
            "(docs/deploy.md)"
        )
        findings.append(Finding(Level.FAIL, "secret key", detail))
    elif own.keys and last_key not in (None, *own.keys) and not others:
        detail = "OUTKEEP_SECRET_KEY is not the one that was used on this Redis: older links do not open"
        findings.append(Finding(Level.FAIL, "secret key", detail))
    elif own.keys:
        findings.append(Finding(Level.OK, "secret key", "the same as in the other processes"))
    if "storage" in found:
        detail = (
            f"OUTKEEP_STORAGE is another one in {_listed(found['storage'])}: what one stores the other does "
            "not find; set the same everywhere and restart"
        )
        findings.append(Finding(Level.FAIL, "storage id", detail))
    if "handlers" in found:
        detail = f"the handlers file differs: {'; '.join(_handlers(own, found['handlers']))}"
        findings.append(Finding(Level.WARN, "handlers file", detail))
    if "version" in found:
        versions = ", ".join(f"{one.version} in {one.name}" for one in found["version"][:_NAMED])
        findings.append(Finding(Level.WARN, "version", f"this is {own.version}, and there is {versions}"))
    return findings


def _handlers(own: Process, others: Sequence[Process]) -> Iterable[str]:
    """In which handlers they differ from ours."""
    for one in others[:_NAMED]:
        theirs, ours = dict(one.handlers), dict(own.handlers)
        parts = {
            "does not know": sorted(ours.keys() - theirs.keys()),
            "alone knows": sorted(theirs.keys() - ours.keys()),
            "has another": sorted(name for name in ours if theirs.get(name, ours[name]) != ours[name]),
        }
        yield f"{one.name} " + ", ".join(f"{how} {_few(names)}" for how, names in parts.items() if names)
    if len(others) > _NAMED:
        yield f"and {len(others) - _NAMED} more"


def _listed(processes: Sequence[Process]) -> str:
    return _few([one.name for one in processes])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
