"""Cut what is long out of a list of the API while it comes in: a page may hold a hundred outputs, inline.

A page is `{"next": …, "results": [{"id": …, "output": …}, …]}`. Each value in an item that takes more than
`LONG` bytes becomes null, so that a page is small whatever stands in it; whoever needs such a value fetches
the item.
"""

import re

LONG = 16 << 10
"""Bytes of the longest value that stays: the times, states and addresses that we read are much shorter."""

_ITEM = 3
"""How deep the members of an item lie: below the page, its `results` and the item."""

_OUTSIDE = re.compile(rb'[^"{}\[\],:]*+["{}\[\],:]')
_DEEPER = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+")*+["{}\[\]]')
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+["\\]', re.DOTALL)
"""Up to the next byte that means something: of an item, in what lies deeper, where plain texts are passed
over as a whole, and in a text."""


class Trimmed:
    """Takes the bytes of one page, block by block. What is no JSON stays so, save where it is cut."""

    def __init__(self, *, long: int = LONG) -> None:
        self.kept = bytearray()
        """What is left of all that was fed."""
        self._long = long
        self._depth = 0
        self._in_text = False
        self._is_escaped = False
        self._value: int | None = None
        """Where in `kept` the value of a member begins, while it is read."""
        self._is_cut = False

    def feed(self, block: bytes) -> None:
        """Take the next bytes."""
        at = 0
        while at < len(block):
            if self._is_escaped:
                self._is_escaped = False
                end = at + 1
                self._keep(block[at:end])
            elif found := self._pattern.match(block, at):
                end = found.end()
                self._keep(block[at : end - 1])
                self._meet(block[end - 1 : end])
            else:
                end = len(block)
                self._keep(block[at:])
            at = end

    @property
    def _pattern(self) -> re.Pattern[bytes]:
        if self._in_text:
            return _INSIDE
        return _OUTSIDE if self._depth <= _ITEM else _DEEPER

    def _meet(self, sign: bytes) -> None:
        if self._in_text:
            self._is_escaped = sign == b"\\"
            self._in_text = sign != b'"'
        elif sign == b'"':
            self._in_text = True
        elif sign in b"{[":
            self._depth += 1
        elif self._depth == _ITEM and sign in b",}":
            self._value, self._is_cut = None, False
        if not self._in_text and sign in b"}]":
            self._depth -= 1
        self._keep(sign)
        if not self._in_text and sign == b":" and self._depth == _ITEM:
            self._value = len(self.kept)

    def _keep(self, piece: bytes) -> None:
        if self._is_cut:
            return
        self.kept += piece
        if self._value is not None and len(self.kept) - self._value > self._long:
            del self.kept[self._value :]
            self.kept += b"null"
            self._is_cut = True
