import base64
import hashlib
import tracemalloc

import pytest

from app.core.data_uri import decode_data_uri, source_of
from app.core.errors import Permanent

PNG = b"\x89PNG\r\n\x1a\n\xff\xfe"
PACKED = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("uri", "media_type", "content"),
    [
        (f"data:image/png;base64,{PACKED}", "image/png", PNG),
        (f"data:image/jpg;base64,{PACKED}", "image/jpg", PNG),
        (f"DATA:Image/PNG;BASE64,{PACKED}", "image/png", PNG),
        (f"data:image/png;name=a.png;base64,{PACKED}", "image/png", PNG),
        (f"data:image/png;base64,{PACKED.rstrip('=')}", "image/png", PNG),
        (f"data:image/png;base64,{PACKED.replace('=', '%3D').replace('+', '%2B')}", "image/png", PNG),
        (f"data:image/png;base64,{PACKED[:6]}\r\n{PACKED[6:]}", "image/png", PNG),
        ("data:image/png;base64,", "image/png", b""),
        ("data:,a%20b%FF", "text/plain", b"a b\xff"),
        ("data:;base64,YQ==", "text/plain", b"a"),
        ("data:image/svg+xml;utf8,<svg fill='#fff'/>", "image/svg+xml", b"<svg fill='#fff'/>"),
        ("data:text/plain;charset=utf-8,é,%C3%A9", "text/plain", b"\xc3\xa9,\xc3\xa9"),
        ("data:text/plain;base64;x=y,YQ==", "text/plain", b"YQ=="),
        (
            "data:image/svg+xml,<svg width='100%' height='5%25'/>",
            "image/svg+xml",
            b"<svg width='100%' height='5%'/>",
        ),
        ("data:x/y,%zz%4", "x/y", b"%zz%4"),
        ("data:x/y;base64,Y-_Q", "x/y", b"c\xef\xd0"),
        ("data:x/y;base64,YQ", "x/y", b"a"),
        ("data:x/y;base64,YQ=", "x/y", b"a"),
        ("data:x/y;base64,YQ===", "x/y", b"a"),
        ("data:x/y;base64,====", "x/y", b""),
        ("data:x/y;base64,YQ==#top", "x/y", b"a"),
        ("data:x/y ; base64 ,YQ==", "x/y", b"a"),
        ("data:image/png;\r\nbase64,YQ==", "image/png", b"a"),
        ("data:png;base64,YQ==", "text/plain", b"a"),
        ("data:a/b/c,x", "text/plain", b"x"),
        ("data:/,x", "text/plain", b"x"),
        ("data:im age/png,x", "text/plain", b"x"),
        ("data:é/x,x", "text/plain", b"x"),
        ("data:base64,YQ==", "text/plain", b"YQ=="),
    ],
)
def test_both_forms_are_decoded(uri: str, media_type: str, content: bytes) -> None:
    assert decode_data_uri(uri) == (media_type, content)


@pytest.mark.parametrize(
    "uri",
    [
        "data:", "data:image/png;base64", "image/png;base64,YQ==", "http://x/,a", "", "data,a",
        "data:x/y;base64,Y", "data:x/y;base64,Y=Q=", "data:x/y;base64,YQ==YQ==", "data:x/y;base64,éé==",
        "data:x/y;base64,Y!==", "data:x/y;base64,%zz",
        "data:x/y,\ud800",
    ],
)  # fmt: skip
def test_a_malformed_one_is_an_error(uri: str) -> None:
    with pytest.raises(Permanent) as caught:
        decode_data_uri(uri)
    assert caught.value.code == "data_uri_malformed"


def test_a_manifest_names_type_and_hash_of_one_that_can_be_read_and_of_one_that_cannot() -> None:
    digest = hashlib.sha256(PNG).hexdigest()
    assert source_of(f"data:image/PNG;base64,{PACKED}") == f"data:image/png;sha256={digest}"
    bad = "data:x/y;base64,Y"
    assert source_of(bad) == f"data:text/plain;sha256={hashlib.sha256(bad.encode()).hexdigest()}"


@pytest.mark.parametrize("before", range(4))
def test_a_long_one_is_decoded_whole_within_little_memory(before: int) -> None:
    uri = f"data:x/y,{'a' * before}{'%41' * 500_000}"
    tracemalloc.start()
    decoded = decode_data_uri(uri)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoded == ("x/y", b"a" * before + b"A" * 500_000)
    assert peak < 20_000_000
