"""Find what to keep in an output of any shape: files, links, text. Section 3.6 of the design has the rules.

One walk serves all: it tells each place where a URL or a `data:` URI stands, in a text of its own or inside
another one. Work and memory grow with the size of the output, whatever its shape.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from urllib.parse import quote

from app.core.data_uri import source_of
from app.core.hosts import HostRules
from app.core.media import has_known_extension

MAX_POINTER = 1024
"""Bytes of one pointer; for a longer one stands that of the nearest member above."""

MAX_POINTERS = 256 * 1024
"""Bytes of all pointers of one output; what comes after that has the pointer of the output itself."""

MAX_SPOTS = 20_000
"""URLs and `data:` URIs of one output that are looked at; the most that a recorded output holds is 249."""

SHOWN = 200
"""Characters of a pointer that a line of the log shows."""

MAX_LINKS = 1000
"""Links of one output that are listed; all of them stand in the output itself."""

Step = str | int
"""A key, or an index of a list."""

_BLANKS = "".join(sign for sign in map(chr, range(0x3001)) if sign.isspace() or sign < " ") + "\u200b\ufeff"
_BEGIN = re.compile(rf"[{_BLANKS}]*+(?:https?://|data:)", re.IGNORECASE)
_PATH = re.compile(r"https?://[^/?#\\]*(?P<path>[^?#]*)", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s/?#\\]\S*+", re.IGNORECASE)
_PLAIN = re.compile(r"[\w/:.?&=%+~#@,;-]++", re.ASCII)
"""Signs of a URL that end none within a text."""
_ANOTHER = re.compile(r"(?<![=/?&:%])https?://", re.IGNORECASE)
_INNER_BLANK = re.compile(r"\s")
_TYPE = re.compile(r"[\w!#$&^.+-]++/[\w!#$&^.+-]++[ \t]*+(?:;|\Z)", re.ASCII)

_ANY = re.compile(r"https?:|data:", re.IGNORECASE)

# In a text. Slashes and ampersands may be escaped, as in JSON that is a string.
_START = re.compile(r"https?:(?:\\*+/|\\++u002f){2}|(?<![A-Za-z0-9])data:", re.IGNORECASE)
_ENDS = (
    '\\s\x00-\x1f"<>`{}|^\\\\“”\u2018\u2019«»'
    "\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
"""Where a URL in a text ends at the latest; another one that is no part of its path or query ends it, too."""
_REST = (
    r"[Hh](?![Tt]{2}[Pp][Ss]?:\\*+(?:/|[uU]002[fF]))|(?<=[=/?&:%])[Hh]"
    r"|&(?!(?:quot|apos|lt|gt|#3[49]|#x2[27]);)"
    r"|\\++(?:[/_]|[uU]00(?!2[027]|3[cCeE]|5[cCeE]|60|7[b-fB-F])[2-7][0-9a-fA-F])"
)
_WIDE = r"\\++[uU](?!00[0-7]|00[aA]0|00[aAbB][bB]|20[0-2]|30[0-3]|[fF]{2})[0-9a-fA-F]{4}"
"""A sign of another alphabet, as JSON escapes it."""
_RUN = re.compile(rf"(?:[^{_ENDS}Hh&]++|{_REST}|{_WIDE})++")
_RUN_OF_URL = re.compile(rf"(?:[^{_ENDS}Hh&()\[\]]++|{_REST}|{_WIDE})*+")
_ASCII_RUN_OF_URL = re.compile(rf"(?:[^{_ENDS}Hh&()\[\]\x80-\U0010ffff]++|{_REST})*+")
_INLINE_START = re.compile("data:", re.IGNORECASE)
_DATA_HEAD = re.compile(r"data:(?P<type>[^\s:,\"'<>()]{0,256}+),", re.IGNORECASE)
_PACKED = re.compile(r"(?:[A-Za-z0-9+/=_%-]++|\\++(?:/|[uU]00(?:2[bBfF]|3[dD])))*+")
_WRAPPED = re.compile(rf"(?:{_PACKED.pattern}(?:\s|\\++[nrt])++)*+{_PACKED.pattern}")
_WORDS_BEHIND = re.compile(r"(?:(?:=|%3[dD])\s|\n[ \t\r]*+\n)\s*+\S")
"""What follows base64 that has ended, after its padding or an empty line."""
_ESCAPED = re.compile(r"\\+(?:([/_\"'])|[uU]([0-9a-fA-F]{4})|([nrt]))|&(amp);")
_HALF = re.compile("[\ud800-\udfff]")
_CLOSING = dict(zip("\"'(<[`“‘«「", "\"')>]`”’»」", strict=True))  # noqa: RUF001
_LONGEST_ENDING = 64
_LONGEST_NAME = 256
_LONGEST_QUOTED = 2048
"""Characters of a URL in a text that holds blanks."""
_IN_BRACKETS = re.compile(r"(?:[^()]++|\([^()]*+\))*+")
_LONGEST_INLINE = 1 << 16
"""Characters of a `data:` URI in a text that is not base64 and holds blanks."""
_BRACKETS = {")": "(", "]": "["}
_AFTER = ".,;:!?'*_~"
"""What follows a URL in a sentence, and in Markdown, is not its end."""
_GOES_ON = tuple(".?#%&=/-_")


@dataclass(frozen=True)
class OutputFile:
    """A file somewhere in a prediction.

    `pointer` is RFC 6901 into the prediction object: of the text that is the source, or that holds it; of the
    output itself when tokens hold it only together. A few models put URLs into the keys of an object: then
    the pointer names the member. `source` is the URL as it is requested, or the `data:` URI.
    """

    pointer: str
    source: str

    @property
    def is_inline(self) -> bool:
        """Whether the bytes stand in the output itself, as a `data:` URI."""
        return is_inline(self.source)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a URL, whatever its host, or a `data:` URI stands. `is_whole`: the text holds nothing else."""

    path: Sequence[Step]
    source: str
    is_whole: bool


def is_inline(source: str) -> bool:
    """Whether a source is a `data:` URI."""
    return source[:5].lower() == "data:"


def find_spots(value: Any) -> Iterator[Spot]:
    """All URLs and `data:` URIs in a JSON value, in order of appearance, those in texts and keys too.

    The path of a spot holds until the next one is asked for.
    """
    for path, tokens in _leaves(value):
        ends: list[int] = []
        for start, end, source in _sources(tokens):
            if len(tokens) == 1:
                yield Spot(path, source, is_whole=(start, end) == (0, len(tokens[0])))
                continue
            ends = ends or list(accumulate(map(len, tokens)))
            index = bisect_right(ends, start)
            yield Spot([*path, index] if end <= ends[index] else path, source, is_whole=False)


def find_whole(value: Any) -> Iterator[Spot]:
    """The texts in a JSON value that are a URL or a `data:` URI and nothing else, also among words."""
    for path, tokens in _leaves(value):
        for index, token in enumerate(tokens):
            source = _whole(token)
            if source is not None:
                yield Spot(path if len(tokens) == 1 else [*path, index], source, is_whole=True)


@dataclass(frozen=True)
class Found:
    """What an output holds, each in order of appearance. `is_all`: there are no more files than these."""

    files: Sequence[OutputFile]
    links: Sequence[OutputFile]
    is_all: bool


def find(output: Any, rules: HostRules, *, most: int = MAX_SPOTS) -> Found:
    """The first `most` files in an output, and the first `MAX_LINKS` links.

    Files are `data:` URIs, what lies on a host of the list, in texts too, and a text that is the URL of a
    file by its name on any other host: that is refused later, loudly. Other texts that are URLs are links.
    """
    pointers, files, links = Pointers("/output"), list[OutputFile](), list[OutputFile]()
    for number, spot in enumerate(find_spots(output)):
        source = spot.source
        is_named = is_inline(source) or rules.lists(source) or (spot.is_whole and has_file_name(source))
        if number == MAX_SPOTS or (is_named and len(files) == most):
            return Found(files, links, is_all=False)
        if is_named:
            files.append(OutputFile(pointers.spell(spot.path), source))
        elif spot.is_whole and len(links) < MAX_LINKS:
            links.append(OutputFile(pointers.spell(spot.path), source))
    return Found(files, links, is_all=True)


def joined_text(output: Any) -> str | None:
    """The text of an output that is text, or a list with words in it, joined; None for all else.

    Words are what is neither a URL, a `data:` URI nor blank.
    """
    tokens = [output] if isinstance(output, str) else output
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    return ("".join(tokens) or None) if _is_text(tokens) else None


def replaced(value: Any, replace: Callable[[str], str | None]) -> Any:
    """A copy of a JSON value in which sources stand as `replace` has them, asked in order of appearance.

    It is given each URL and `data:` URI, in texts and keys too, up to `MAX_SPOTS`; None leaves one as it is.
    """
    numbers = iter(range(MAX_SPOTS))

    def of_text(tokens: list[str]) -> list[str]:
        return _edited(
            tokens, [(*spot, replace(spot[2])) for spot, _ in zip(_sources(tokens), numbers, strict=False)]
        )

    def copy(value: Any) -> Any:
        if isinstance(value, str):
            return of_text([value])[0]
        if isinstance(value, list):
            return of_text(value) if _are_tokens(value) else [copy(item) for item in value]
        if not isinstance(value, dict):
            return value
        members = {}
        for key, item in value.items():
            (name,) = of_text([key])
            members[key if name in value else name] = copy(item)
        return members

    return copy(value)


def with_stored_names(output: Any, names: Mapping[str, Sequence[str]]) -> Any:
    """A copy of `output` in which sources are replaced by the names of their stored files.

    `names` are those of each source, as manifests have it, in order of appearance; the last one stands for
    all that follow.
    """
    if not names:
        return output
    has_inline = any(map(is_inline, names))
    seen: dict[str, int] = {}

    def name(source: str) -> str | None:
        if is_inline(source):
            source = source_of(source) if has_inline else source
        stored = names.get(source)
        if not stored:
            return None
        seen[source] = seen.get(source, -1) + 1
        return stored[min(seen[source], len(stored) - 1)]

    return replaced(output, name)


class Pointers:
    """Spells pointers (RFC 6901) below `root`, each and all of them within bounds."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._left = MAX_POINTERS

    def spell(self, path: Iterable[Step]) -> str:
        """The pointer to a path, or to the nearest one above that is short enough."""
        pointer, room = self._root, min(MAX_POINTER, self._left) - len(self._root)
        for step in path:
            part = str(step)
            if len(part) >= room:  # before it is escaped: a key may be as large as the output
                break
            part = f"/{escape(part)}"
            room -= len(part.encode())
            if room < 0:
                break
            pointer += part
        self._left -= len(pointer.encode())
        return pointer


def escape(key: str) -> str:
    """One part of a JSON pointer (RFC 6901, section 3)."""
    return key.replace("~", "~0").replace("/", "~1")


def has_file_name(url: str) -> bool:
    """Whether the path of a URL ends in an extension that we know."""
    match = _PATH.match(url)
    return match is not None and has_known_extension(match["path"][-_LONGEST_ENDING:])


def _leaves(value: Any) -> Iterator[tuple[list[Step], list[str]]]:
    """The texts in a JSON value, keys too, each as a list of its tokens, with its path."""
    path: list[Step] = []
    # No recursion: each text would be handed up through all levels.
    stack: list[Iterator[tuple[Step | None, Any]]] = [iter([(None, value)])]
    while stack:
        member = next(stack[-1], None)
        if member is None:
            stack.pop()
            continue
        step, item = member
        if step is not None:
            path[len(stack) - 2 :] = [step]
        if isinstance(step, str):
            yield path, [step]
        if isinstance(item, str) or _are_tokens(item):
            yield path, [item] if isinstance(item, str) else item
        elif isinstance(item, list | dict):
            stack.append(iter(item.items() if isinstance(item, dict) else enumerate(item)))


def _are_tokens(value: Any) -> bool:
    """Whether a value is a list of texts that are one text."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(token, str) for token in value)
        and _is_text(value)
    )


def _is_text(tokens: Sequence[str]) -> bool:
    """Whether texts have words in them, or nothing that is a source."""
    if not _ANY.search("".join(tokens)):
        return True
    sources = [_whole(token) is not None for token in tokens]
    return not any(sources) or any(
        not is_source and bool(token.strip()) for token, is_source in zip(tokens, sources, strict=True)
    )


def _whole(text: str) -> str | None:
    """The source that a text is as a whole, blanks around it cut and those in it encoded; None for text."""
    if not _BEGIN.match(text):
        return None
    inner = text.strip(_BLANKS)
    if is_inline(inner):
        return inner if _is_data_uri(inner) else None
    if _ANOTHER.search(inner, 1) or not _URL.match(inner):
        return None
    first, *rest = _INNER_BLANK.split(inner, maxsplit=1)
    return _with_blanks(inner, first) if rest else _without_words(inner)


def _with_blanks(inner: str, first: str) -> str | None:
    """A URL and the words behind it are text; a name that ends as names of files do may hold blanks."""
    is_name = has_file_name(inner) and not has_file_name(first) and len(inner) <= _LONGEST_QUOTED
    if not is_name or "\n" in inner or "\r" in inner:
        return None
    return _INNER_BLANK.sub(lambda blank: quote(blank[0]), inner)


def _without_words(inner: str) -> str | None:
    """A URL without the full stop behind the name of a file; None when words follow it, not set apart."""
    found = _PLAIN.match(inner)
    named = found[0].rstrip(_AFTER) if found and not has_file_name(inner) else inner
    if named == inner or not has_file_name(named):
        return inner
    return None if inner[len(named) :].strip(_AFTER) else named


def _is_data_uri(text: str) -> bool:
    """Whether a text that begins with `data:` is read by a browser as a file, and is no prose."""
    comma = text.find(",")
    if comma < 0:
        return False
    head = text[5:comma].translate({9: None, 10: None, 13: None})
    if _is_base64(head):
        return not _WORDS_BEHIND.search(text, comma)
    if _TYPE.match(head):
        return True
    return head[:1] in {"", ";"} and comma + 1 < len(text)


def _is_base64(head: str) -> bool:
    """Whether what stands between `data:` and the comma says that base64 follows."""
    _, semicolon, last = head.rpartition(";")
    return bool(semicolon) and last.strip().lower() == "base64"


def _sources(tokens: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Where sources stand in a text, given in tokens: from, to, and each as it is requested."""
    if len(tokens) == 1:
        source = _whole(tokens[0])
        if source is not None:
            yield 0, len(tokens[0]), source
            return
    text, at = "".join(tokens), 0
    whole_tokens = _whole_tokens(tokens) if len(tokens) > 1 and ":" in text else iter(())
    for start, end, source in whole_tokens:
        yield from _between(text, at, start)
        yield start, end, source
        at = end
    yield from _between(text, at, len(text))


def _whole_tokens(tokens: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Those of several tokens that are a source and all of it, whatever comes before and after them."""
    at = 0
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        source = _whole(token)
        goes_on = following.startswith(_GOES_ON)
        if source is None:
            is_all = False
        elif is_inline(source):
            is_all = not source.endswith(",") or not following.strip() or is_inline(following)
        else:
            is_all = has_file_name(source) and not goes_on
        if source is not None and is_all:
            yield at + len(token) - len(token.lstrip(_BLANKS)), at + len(token), source
        at += len(token)


def _between(text: str, at: int, until: int) -> Iterator[tuple[int, int, str]]:
    """Where sources stand in a part of a text."""
    while found := _START.search(text, at, until):
        read = _data if found[0][-1] == ":" else _url
        end, source = read(text, found.start(), found.end(), until)
        at = max(end, found.end())
        if source is not None:
            yield found.start(), at, source


def _data(text: str, start: int, _: int, until: int) -> tuple[int, str | None]:
    """Where a `data:` URI in a text ends, and what it is; None when it is prose."""
    head = _DATA_HEAD.match(text, start, until)
    if head is None:
        return start, None
    media_type, at = _unescaped(head["type"]), head.end()
    if _is_base64(media_type):
        end, wrapped = _end(_PACKED, text, at, until), _end(_WRAPPED, text, at, until)
        behind = text[wrapped : min(wrapped + 17, until)].lstrip("\\")[:1]
        if wrapped > end and behind == _CLOSING.get(text[start - 1 : start]):
            end = wrapped
    elif _TYPE.match(media_type):
        end = _end_of_enclosed(text, start, at, until) or _end(_RUN, text, at, until)
    else:
        return start, None
    return end, _unescaped(text[start:end])


def _end(run: re.Pattern[str], text: str, at: int, until: int) -> int:
    found = run.match(text, at, until)
    return found.end() if found else at


def _end_of_enclosed(text: str, start: int, at: int, until: int) -> int | None:
    """Before which sign what stands in quotes or brackets ends; None where it does not."""
    closing, until = _CLOSING.get(text[start - 1 : start]), min(until, at + _LONGEST_INLINE)
    another = _INLINE_START.search(text, at, until)  # what is behind it is searched again
    until = another.start() if another else until
    if closing == ")":
        end = _end(_IN_BRACKETS, text, at, until)
        return end if text[end : end + 1] == ")" else None
    if closing is None:
        return None
    # A quote that is escaped more often than the first belongs to what is quoted.
    before = text[max(start - 17, 0) : start - 1]
    escapes = len(before) - len(before.rstrip("\\"))
    found = re.compile(rf"(?<!\\)\\{{{escapes}}}{re.escape(closing)}").search(text, at, until)
    return found.start() if found else None


def _url(text: str, start: int, after_scheme: int, until: int) -> tuple[int, str | None]:
    """Where a URL in a text ends, and what it is; None when it has no host."""
    opening = text[start - 1 : start]
    closing = _CLOSING.get(opening)
    if closing:
        quoted = _quoted(text, start, closing, until)
        if quoted is not None:
            return quoted
    raw = _trimmed(text[start : _end_of_url(text, start, after_scheme, until)], opening)
    url = _unescaped(raw)
    return start + len(raw), url if _URL.fullmatch(url) else None


def _end_of_url(text: str, start: int, at: int, until: int) -> int:
    """Where the signs of a URL in a text end. What comes behind is searched again, so it is not read here."""
    depth, run = {"(": 0, "[": 0}, _ASCII_RUN_OF_URL
    while found := run.match(text, at, until):
        at = found.end()
        sign = text[at : min(at + 1, until)]
        if sign in _BRACKETS:
            depth[_BRACKETS[sign]] -= 1
        elif sign in depth:
            depth[sign] += 1
        elif run is _ASCII_RUN_OF_URL and (words := _RUN.match(text, at, min(at + _LONGEST_NAME, until))):
            # Where words are not set apart, a name that ends as names of files do ends the URL.
            ended, whole = (_unescaped(text[start:end]) for end in (at, words.end()))
            if has_file_name(ended) and not has_file_name(whole):
                break
            run = _RUN_OF_URL
            continue
        else:
            break
        if min(depth.values()) < 0:
            break
        at += 1
    return at


def _quoted(text: str, start: int, closing: str, until: int) -> tuple[int, str] | None:
    """A URL with blanks in it, as far as the sign that closes it; None when there is none."""
    until = min(until, start + _LONGEST_QUOTED)
    another = _START.search(text, start + 1, until)
    end, limit = start, another.start() if another else until
    for _ in range(4):  # a name may hold brackets
        end = text.find(closing, end + 1, limit)
        inner = text[start:end].rstrip("\\") if end > 0 else ""
        if not _INNER_BLANK.search(inner):
            break
        if closing == ")" and inner.count("(") > inner.count(")"):
            continue
        source = _whole(_unescaped(inner))
        return (start + len(inner), source) if source else None
    return None


def _trimmed(run: str, opening: str) -> str:
    """What of a run of characters in a text is the URL."""
    if opening == "'":
        run = run.partition("'")[0]
    return run.rstrip(_AFTER)


def _unescaped(raw: str) -> str:
    """A source as it is meant, where JSON, Markdown or HTML within a text has escaped it."""
    if "\\" not in raw and "&amp;" not in raw:
        return raw
    text = _ESCAPED.sub(_meant, raw)
    if not _HALF.search(text):
        return text
    # JSON escapes in halves what takes more than 16 bits.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _meant(found: re.Match[str]) -> str:
    sign, code, blank, _ = found.groups()
    return sign or (
        chr(int(code, 16)) if code else {"n": "\n", "r": "\r", "t": "\t"}[blank] if blank else "&"
    )


def _edited(tokens: list[str], edits: Iterable[tuple[int, int, str, str | None]]) -> list[str]:
    """The tokens of a text with sources replaced; one that stands in several is replaced in the first."""
    pending = deque((start, end, name) for start, end, _, name in edits if name is not None)
    if not pending:
        return tokens
    text, copy, first = "".join(tokens), [], 0
    for token in tokens:
        last, at, pieces = first + len(token), first, []
        while pending and pending[0][0] < last:
            start, end, name = pending[0]
            if start >= first:
                pieces += [text[at:start], name]
            at = min(end, last)
            if end > last:
                break
            pending.popleft()
        copy.append("".join([*pieces, text[at:last]]))
        first = last
    return copy
