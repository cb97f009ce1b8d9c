"""Under which host names pages and API are served: the rules in `OUTKEEP_ALLOWED_HOSTS`.

A page that answers to any name can be reached through a name that a stranger made lead to us (DNS rebinding).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from app.core.errors import Permanent

_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*{_LABEL}|\[[0-9a-f:.]+\]", re.ASCII)
_HEADER = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_][a-z0-9._-]*)(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """Names in lower case, and `suffixes` that begin with a dot."""

    names: frozenset[str]
    suffixes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name`, `*.suffix` (subdomains only) and addresses, separated by spaces; ports do not count.

        Raises `Permanent` (`bad_hosts`), which names the bad entry.
        """
        entries = text.lower().split()
        for entry in entries:
            if not _NAME.fullmatch(entry):
                message = (
                    f"{entry!a} is not a host name; write names without scheme and port, such as example.com"
                )
                raise Permanent("bad_hosts", message)
        if not entries:
            raise Permanent("bad_hosts", "it names no host; leave it unset to allow any")
        wildcards = [entry for entry in entries if entry.startswith("*.")]
        return cls(frozenset(entries) - {*wildcards}, tuple(wildcard[1:] for wildcard in wildcards))

    @property
    def text(self) -> str:
        """The rules as one writes them."""
        return " ".join([*sorted(self.names), *(f"*{suffix}" for suffix in self.suffixes)])

    def allows(self, headers: Sequence[str]) -> bool:
        """Whether a request with these `Host` headers, all that came, may be answered."""
        match = _HEADER.fullmatch(headers[0].lower()) if len(headers) == 1 else None
        if match is None:
            return False
        host = match["host"].removesuffix(".")
        return host in self.names or host.endswith(self.suffixes)
