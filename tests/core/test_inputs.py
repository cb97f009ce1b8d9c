import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import Permanent
from app.core.inputs import Description, Uploads, description, find_inputs, upload_id
from app.core.names import input_stem

URL = "https://replicate.delivery/pbxt/AbC/in.png"
API = "https://api.replicate.com"
FILE = "cneqzikepnug6xezperrr4z55o"

VALUES = st.sampled_from([URL, "data:text/plain,x", "a prompt", 7, None])
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))


def stems(value: Any) -> list[tuple[str, str]]:
    return [(one.place.pointer, input_stem(one.key, one.index)) for one in find_inputs(value)]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"prompt": "x", "image": URL}, [("/input/image", "input-image-0")]),
        (
            {"images": [URL, URL], "mask": URL},
            [
                ("/input/images/0", "input-images-0"),
                ("/input/images/1", "input-images-1"),
                ("/input/mask", "input-mask-0"),
            ],
        ),
        ({"a b": URL, "a/b": URL}, [("/input/a b", "input-a_b-0"), ("/input/a~1b", "input-a_b-1")]),
        ({"../../etc": URL}, [("/input/..~1..~1etc", "input-______etc-0")]),
        ({"\u202egnp": URL}, [("/input/\u202egnp", "input-_gnp-0")]),
        ({"": URL}, [("/input/", "input-_-0")]),
        ({"x" * 300: URL}, [(f"/input/{'x' * 300}", f"input-{'x' * 64}-0")]),
        ({"deep": {"er": [{"image": URL}]}}, [("/input/deep/er/0/image", "input-deep-0")]),
        ({"image": "data:image/png;base64,AAAA"}, [("/input/image", "input-image-0")]),
        (URL, [("/input", "input-_-0")]),
        ({}, []),
        (None, []),
    ],
)
def test_input_files_are_found_and_named_by_their_key(value: Any, found: list[tuple[str, str]]) -> None:
    assert stems(value) == found


@given(JSON)
def test_names_of_inputs_are_safe_and_differ(value: Any) -> None:
    names = [stem for _, stem in stems(value)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"input-[A-Za-z0-9_-]{1,64}-[0-9]+", name) for name in names)


def test_every_recorded_input_is_walked(samples: list[dict[str, Any]]) -> None:
    found = [one for sample in samples for one in find_inputs(sample["object"].get("input"))]
    assert len(found) > 50


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        (f"{API}/v1/files/{FILE}", FILE),
        (f"{API}/v1/files/", None),
        (f"{API}/v1/files/{FILE}/download", None),
        (f"{API}/v1/files/{FILE}?x=1", None),
        (f"{API}/v1/files/..", None),
        (f"{API}/v1/predictions/{FILE}", None),
        (f"{API}.example.com/v1/files/{FILE}", None),
        (f"http://api.replicate.com/v1/files/{FILE}", None),
        (FILE, None),
    ],
)
def test_uploads_are_known_by_their_url(url: str, identity: str | None) -> None:
    assert upload_id(url, API) == identity


@pytest.mark.parametrize(
    "url",
    [
        "http://api.replicate.com/v1/files/x",
        "https://api.replicate.com:8443/v1/files/x",
        "https://api.replicate.com.example.com/v1/files/x",
        "https://replicate.delivery/x",
    ],
)
def test_the_token_opens_nothing_elsewhere(url: str) -> None:
    assert Uploads.at(API, "t").target(url) is None


def test_the_token_opens_its_own_origin_and_does_not_show() -> None:
    uploads = Uploads.at(API, "canary-token")
    target = uploads.target(f"{API}/v1/files/x")
    assert target is not None
    assert (target.host, target.port, target.trusted) == ("api.replicate.com", 443, True)
    assert "canary-token" not in repr(uploads)
    with pytest.raises(Permanent):
        uploads.target("https://user@api.replicate.com/v1/files/x")


def described(**keys: Any) -> bytes:
    return json.dumps({"id": FILE, "urls": {"get": "x"}, **keys}).encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (described(name="a.png", size=3, checksums={"sha256": "ab"}), Description("a.png", 3, "ab")),
        (described(), Description("", None, None)),
        (described(name=7, size="3", checksums=[]), Description("", None, None)),
        (described(id="another"), None),
        (b'{"id": "cneqzikepnug6xezperrr4z55o"}', None),
        (b"[1]", None),
        (b"\x89PNG", None),
        (b"[" * 100_000, None),
        (b"", None),
    ],
)
def test_the_description_of_a_file_is_told_from_the_file(body: bytes, expected: Description | None) -> None:
    assert description(body, FILE) == expected


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        (Description("", 3, "ab"), True),
        (Description("", None, None), True),
        (Description("", 4, "ab"), False),
        (Description("", 3, "cd"), False),
    ],
)
def test_what_does_not_fit_its_description_is_not_the_file(found: Description, fits: bool) -> None:  # noqa: FBT001
    assert found.fits(3, "ab") is fits
