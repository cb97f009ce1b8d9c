"""Cut what is long out of a list of the API while it comes in: a page may hold a hundred outputs, inline.

A page is `{"next": …, "results": [{"id": …, "output": …}, …]}`. Each value in an item that takes more than
`LONG` bytes, or nests deeper than `DEEP` levels, becomes null, so that a page is small whatever stands in it;
whoever needs such a value fetches the item. What lies deeper than the members of items is passed over in
large pieces; all else takes a step for each sign, of which a page may have `MOST_STEPS`.
"""

import re
from itertools import accumulate

from app.core.errors import Permanent

LONG = 16 << 10
"""Bytes of the longest value that stays: the times, states and addresses that we read are much shorter."""

DEEP = 100
"""Levels of the deepest value that stays."""

MOST_STEPS = 1_000_000
"""About a second of work; a page of a hundred predictions takes some ten thousand."""

_ITEM = 3
"""How deep the members of an item lie: below the page, its `results` and the item."""

_OUTSIDE = re.compile(rb'[^"{}\[\],:]*+["{}\[\],:]')
_DEEPER = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+")*+["{}\[\]]')
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+["\\]', re.DOTALL)
"""Up to the next byte that means something: of an item, in what lies deeper, where plain texts are passed
over as a whole, and in a text."""

_PIECE = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_PIECE_BYTES = 1024
_SIGNED = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(sign for sign in range(256) if sign not in b"{[}]")
"""For what lies deeper: whole texts are left out, and brackets become 1 and -1."""


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
        self._steps = 0

    def feed(self, block: bytes) -> None:
        """Take the next bytes; raises `Permanent` (`api_too_large`) after `MOST_STEPS`."""
        at = by_sign = 0
        while at < len(block):
            if at >= by_sign and self._depth > _ITEM and not self._in_text:
                end = self._pass_over(block, at)
                if end > at:
                    self._keep(block[at:end])
                    at = end
                    continue
                by_sign = at + _PIECE_BYTES
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise Permanent("api_too_large", "a page of a list of the API holds too many values")
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

    def _pass_over(self, block: bytes, at: int) -> int:
        """Where the piece ends that begins there, if all of it lies deeper than the members of an item."""
        found = _PIECE.match(block, at, at + _PIECE_BYTES)
        piece = found[0] if found else b""
        signs = memoryview(_TEXT.sub(b"", piece).translate(_SIGNED, _NO_BRACKETS)).cast("b")
        depths = list(accumulate(signs, initial=self._depth))
        if min(depths) <= _ITEM:
            return at
        if max(depths) > _ITEM + DEEP:
            self._cut()
        self._depth = depths[-1]
        return at + len(piece)

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
            if self._depth > _ITEM + DEEP:
                self._cut()
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
            self._cut()

    def _cut(self) -> None:
        if self._value is not None and not self._is_cut:
            del self.kept[self._value :]
            self.kept += b"null"
            self._is_cut = True
