"""Find what to keep in an output of any shape: file URLs, `data:` URIs, text."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_URL = re.compile(r"https?://\S+", re.IGNORECASE)
# Without a media type only base64 tells a `data:` URI from prose. What repeats gives nothing back: each place
# to return to takes memory, and a text may have millions.
_DATA_URI = re.compile(
    r"data:(?:[\w!#$&^.+-]++/[\w!#$&^.+-]++(?:;[^,;\r\n]*+)*+"
    r"|(?:;(?!base64,)[^,;\r\n]*+)*+;base64),",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class OutputFile:
    """A file somewhere in a prediction.

    `pointer` is RFC 6901 into the prediction object. A few models put URLs into the keys of an object:
    then the pointer names the member, and its last part is the source itself.
    """

    pointer: str
    source: str

    @property
    def is_inline(self) -> bool:
        """Whether the bytes stand in the output itself, as a `data:` URI."""
        return self.source[:5].lower() == "data:"


def is_file(text: str) -> bool:
    """Whether a string as a whole is the URL of a file or a `data:` URI.

    Text that merely starts with a URL, or looks like a path, is text.
    """
    return _URL.fullmatch(text) is not None or _DATA_URI.match(text) is not None


def find_files(output: Any, pointer: str = "/output") -> Iterator[OutputFile]:
    """All files in `output`, in order of appearance; `pointer` is where the output itself lies."""
    if isinstance(output, str):
        if is_file(output):
            yield OutputFile(pointer, output)
    elif isinstance(output, list):
        for index, item in enumerate(output):
            yield from find_files(item, f"{pointer}/{index}")
    elif isinstance(output, dict):
        for key, item in output.items():
            member = f"{pointer}/{escape(key)}"
            if is_file(key):
                yield OutputFile(member, key)
            yield from find_files(item, member)


def joined_text(output: Any) -> str | None:
    """The text of an output that is text or a list of tokens; None when it is anything else or empty."""
    tokens = [output] if isinstance(output, str) else output
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    if any(is_file(token) for token in tokens):
        return None
    return "".join(tokens) or None


def with_stored_names(output: Any, names: Mapping[OutputFile, str], pointer: str = "/output") -> Any:
    """A copy of `output` in which each source is replaced by the name of its stored file."""
    if isinstance(output, str):
        return names.get(OutputFile(pointer, output), output)
    if isinstance(output, list):
        return [with_stored_names(item, names, f"{pointer}/{index}") for index, item in enumerate(output)]
    if not isinstance(output, dict):
        return output
    copy = {}
    for key, item in output.items():
        member = f"{pointer}/{escape(key)}"
        name = names.get(OutputFile(member, key), key)
        copy[key if name in output else name] = with_stored_names(item, names, member)
    return copy


def escape(key: str) -> str:
    """One part of a JSON pointer (RFC 6901, section 3)."""
    return key.replace("~", "~0").replace("/", "~1")


def unescape(part: str) -> str:
    """The reverse of `escape`."""
    return part.replace("~1", "/").replace("~0", "~")
