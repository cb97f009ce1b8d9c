"""Heads of answers that are not quite HTTP: read as far as their meaning is clear, and written anew.

aiohttp's parser refuses a header of 9 kB, the 129th header, a length that is said twice, a blank in a name.
What is written here it takes: of a file the headers that we use and the one clear extent of the body, of the
answer of a handler the status.
"""

import re
from dataclasses import dataclass, field
from typing import Final

MAX_HEADER: Final = 64 * 1024
MAX_HEAD: Final = 2 * MAX_HEADER
"""Bytes of one header, and of all of them."""

ODD: Final = "Outkeep-Odd"
"""Header that we add: what was wrong in an answer whose meaning is clear all the same."""
UNCLEAR: Final = "Outkeep-Unclear"
"""Header that we add: why nobody can tell where the body of an answer ends."""

END: Final = re.compile(rb"\n\r?\n")
"""Where a head ends, and the body begins."""

_MAX_KEPT = 100
_USED = frozenset({b"content-type", b"content-encoding", b"content-disposition", b"location", b"retry-after"})
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_STATUS = re.compile(rb"HTTP/([0-9](?:\.[0-9])?)[ \t]+([1-9][0-9]{2})(?![0-9])")
_FRAMING = re.compile(
    rb"\n(?:content-length|transfer-encoding|outkeep-|sec-websocket-key1)[^\n]*", re.IGNORECASE
)
_PLAIN_FRAMING = re.compile(
    rb"\n(?:content-length:[ \t]*[0-9]{1,19}|transfer-encoding:[ \t]*chunked)[ \t]*\r?", re.IGNORECASE
)
_PLAIN = re.compile(
    rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [\t -~\x80-\xff]*)?\r?\n(?:"
    + _TOKEN
    + rb":[\t -~\x80-\xff]*\r?\n)*+\r?\n"
)
_PLAIN_SIZE, _PLAIN_LINES = 8000, 100
"""What the parser takes by itself."""
_LIKE_FRAMING = re.compile(rb"content.{0,3}length|transfer.{0,3}encoding", re.IGNORECASE | re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_NO_CODING = frozenset({b"", b"identity", b"none", b"binary", b"7bit", b"8bit"})
"""Words that change nothing; the last three belong into `Content-Transfer-Encoding`."""


def is_informational(head: bytes) -> bool:
    """Whether the head of the answer itself is still to come."""
    found = _STATUS.match(head)
    return found is not None and found[2].startswith(b"1") and found[2] != b"101"


def is_answered(head: bytes | bytearray) -> bool:
    """Whether the beginning of a head tells the status of the answer itself."""
    found = _STATUS.match(head)
    return found is not None and not is_informational(found[0])


def for_file(head: bytes, fault: str = "") -> bytes:
    """The head of a file host's answer for a strict parser, of the same meaning; as it is if it is in order.

    `fault` is why it is not whole. One that has no status is left as it is.
    """
    read = None if not fault and _is_plain(head) else _Head.read(head)
    if read is None:
        return head
    kept = [b"%s: %s" % (name, value) for name, value in read.fields if name in _USED]
    framing, unclear = read.framing()
    unclear = fault or read.unclear or unclear
    return read.written([*kept[:_MAX_KEPT], *([] if unclear else framing)], unclear)


def for_status(head: bytes, fault: str = "") -> bytes:
    """The head of an answer whose status alone counts, as `for_file` has it; an odd one has no body."""
    read = None if not fault and _is_plain(head) else _Head.read(head)
    if read is None:
        return head
    asked = [b"Retry-After: " + value for name, value in read.fields if name == b"retry-after"]
    _, unclear = read.framing()
    read.odd += [text for text in (fault, unclear, read.unclear) if text]
    return read.written([*asked[:1], b"Content-Length: 0"], "")


def _is_plain(head: bytes) -> bool:
    """Whether the parser takes a head as it is, and finds the one extent that it can have."""
    if len(head) > _PLAIN_SIZE or head.count(b"\n") > _PLAIN_LINES or not _PLAIN.fullmatch(head):
        return False
    framing = _FRAMING.findall(head)
    return not framing or (len(framing) == 1 and _PLAIN_FRAMING.fullmatch(framing[0]) is not None)


@dataclass
class _Head:
    """Version, status, headers (names in lower case), and in words what is odd or leaves the extent open."""

    version: bytes
    status: bytes
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    unclear: str = ""

    @classmethod
    def read(cls, data: bytes) -> "_Head | None":
        """Understand `data`, without its last line if that is cut; None when there is no status."""
        found = _STATUS.match(data)
        if found is None:
            return None
        head = cls(b"1.0" if found[1] == b"1.0" else b"1.1", found[2])
        if len(data) > MAX_HEAD:
            head.unclear = f"headers of more than {MAX_HEAD >> 10} KiB"
        fields: list[tuple[bytes, list[bytes]]] = []
        for line in data[: data.rfind(b"\n") + 1].split(b"\n")[1:]:
            text = line.rstrip(b"\r")
            if text[:1] in (b" ", b"\t"):
                head.odd.append("a header over several lines")
                if fields:
                    fields[-1][1].append(text.strip(b" \t"))
            elif text:
                fields.append(head._header(text))
        head.fields = [(name, b" ".join(parts)) for name, parts in fields]
        return head

    def _header(self, line: bytes) -> tuple[bytes, list[bytes]]:
        name, colon, value = line.partition(b":")
        proper = name.rstrip(b" \t")
        if max(len(name), len(value.strip(b" \t"))) > MAX_HEADER:
            self.unclear = f"a header of more than {MAX_HEADER >> 10} KiB"
        if not colon or not re.fullmatch(_TOKEN, proper):
            self.odd.append("a header without a proper name")
            if _LIKE_FRAMING.search(line):
                self.unclear = "a header that speaks of the length without a proper name"
            return b"", []
        if proper != name:
            self.odd.append("a blank after the name of a header")
        if _CONTROL.search(value):
            self.odd.append("a control character in a header")
            if _LIKE_FRAMING.search(value):
                self.unclear = "a header that speaks of the length behind a control character"
        return proper.lower(), [_CONTROL.sub(b" ", value).strip(b" \t")]

    def framing(self) -> tuple[list[bytes], str]:
        """The header that says where the body ends, if one does; and why that is not clear, if it is not."""
        lengths = [part.strip() for part in self._values(b"content-length")]
        codings = [part.strip().lower() for part in self._values(b"transfer-encoding")]
        meant = [coding for coding in codings if coding not in _NO_CODING]
        if meant != codings:
            self.odd.append("a transfer coding that means nothing")
        if meant:
            if meant != [b"chunked"] or lengths:
                return [], "chunks in a way that leaves the length unclear"
            return [b"Transfer-Encoding: chunked"], ""
        if not all(map(_LENGTH.fullmatch, lengths)) or len({int(length) for length in lengths}) > 1:
            return [], "lengths that do not agree, or are no numbers"
        if len(lengths) > 1:
            self.odd.append("the same length more than once")
        return [b"Content-Length: " + length for length in lengths[:1]], ""

    def _values(self, wanted: bytes) -> list[bytes]:
        return [part for name, value in self.fields if name == wanted for part in value.split(b",")]

    def written(self, lines: list[bytes], unclear: str) -> bytes:
        """The head with these headers; its connection is closed behind it."""
        said = {ODD: "; ".join(dict.fromkeys(self.odd)), UNCLEAR: unclear}
        notes = [f"{name}: {text}".encode() for name, text in said.items() if text]
        first = b"HTTP/%s %s " % (self.version, self.status)
        return b"\r\n".join([first, b"Connection: close", *lines, *notes, b"", b""])
