import base64
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Rejected
from app.core.signature import (
    Delivery,
    SharedKey,
    VerifyingKey,
    parse_signing_keys,
    parse_verifying_keys,
    sign,
    signed_headers,
    verify,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()
PUBLIC = "whpk_A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
PRIVATE = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIME = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
KEYS = parse_verifying_keys(SECRET)
GOOD = SIGNATURE.removeprefix("v1,").encode()

Headers = list[tuple[bytes, bytes]]


def headers(
    webhook_id: bytes = ID.encode(),
    timestamp: bytes = str(TIME).encode(),
    signature: bytes = SIGNATURE.encode(),
) -> Headers:
    return [
        (b"content-type", b"application/json"),
        (b"webhook-id", webhook_id),
        (b"webhook-timestamp", timestamp),
        (b"webhook-signature", signature),
    ]


def raw(signed: dict[str, str]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in signed.items()]


def signed(webhook_id: str, timestamp: int, body: bytes, secrets: str = SECRET) -> Headers:
    return raw(signed_headers(webhook_id, timestamp, body, parse_signing_keys(secrets)))


def refusal(
    given_headers: Sequence[tuple[bytes, bytes]],
    body: bytes = BODY,
    keys: Sequence[VerifyingKey] = KEYS,
    *,
    now: float = TIME,
) -> tuple[str, int]:
    """The code and status with which a delivery is refused."""
    with pytest.raises(Rejected) as rejected:
        verify(given_headers, body, keys, now=now)
    assert type(rejected.value) is Rejected
    return rejected.value.code, rejected.value.status


def test_the_vector_that_every_implementation_shares_is_accepted() -> None:
    delivery = verify(headers(), BODY, KEYS, now=TIME)
    assert delivery == Delivery(webhook_id=ID, timestamp=TIME, body=BODY)


def test_we_sign_the_shared_vector_as_everyone_does() -> None:
    assert sign(ID, TIME, BODY, parse_signing_keys(SECRET)) == SIGNATURE
    assert signed_headers(ID, TIME, BODY, parse_signing_keys(SECRET)) == {
        "webhook-id": ID,
        "webhook-timestamp": str(TIME),
        "webhook-signature": SIGNATURE,
    }


def test_a_delivery_does_not_print_its_body() -> None:
    assert "2432232314" not in repr(verify(headers(), BODY, KEYS, now=TIME))


def test_an_empty_body_can_be_signed() -> None:
    assert verify(signed(ID, TIME, b""), b"", KEYS, now=TIME).body == b""


@pytest.mark.parametrize("name", [b"webhook-id", b"webhook-timestamp", b"webhook-signature"])
class TestEachHeader:
    def test_must_be_there(self, name: bytes) -> None:
        assert refusal([pair for pair in headers() if pair[0] != name]) == ("header_missing", 400)

    @pytest.mark.parametrize("value", [b"", b" ", b"\t  "])
    def test_must_not_be_blank(self, name: bytes, value: bytes) -> None:
        blank = [(header, value if header == name else good) for header, good in headers()]
        assert refusal(blank) == ("header_missing", 400)

    def test_must_not_be_there_twice_even_with_the_same_value(self, name: bytes) -> None:
        doubled = headers() + [pair for pair in headers() if pair[0] == name]
        assert refusal(doubled) == ("header_doubled", 400)

    def test_must_not_hide_behind_a_blank_twin(self, name: bytes) -> None:
        assert refusal([(name, b""), *headers()]) == ("header_doubled", 400)

    def test_must_be_ascii(self, name: bytes) -> None:
        odd = [(header, "é".encode() if header == name else good) for header, good in headers()]
        assert refusal(odd)[1] == 400


@pytest.mark.parametrize(
    "webhook_id",
    [
        b"msg.1",
        b"msg/1",
        b"../msg",
        b"msg:1",
        b"msg 1",
        b" msg",
        b"msg\n",
        b"msg\x00",
        b"msg\x7f",
        "msg_é".encode(),
        "msg_١".encode(),  # noqa: RUF001
        b"msg_\xff",
        b"a" * 65,
        b"a" * 10_000,
        b"msg_1,msg_2",
    ],
)
def test_an_id_outside_the_grammar_is_refused(webhook_id: bytes) -> None:
    assert refusal(headers(webhook_id=webhook_id)) == ("header_malformed", 400)


@pytest.mark.parametrize("webhook_id", ["a", "a" * 64, "A-Z_09"])
def test_an_id_inside_the_grammar_is_accepted(webhook_id: str) -> None:
    assert verify(signed(webhook_id, TIME, BODY), BODY, KEYS, now=TIME).webhook_id == webhook_id


@pytest.mark.parametrize(
    "timestamp",
    [
        b"1.7e9",
        b"1614265330.9",
        b"1614265330.0",
        b"+1614265330",
        b"-1614265330",
        b" 1614265330",
        b"1614265330 ",
        b"1614265330\n",
        b"1_614_265_330",
        b"01614265330",
        "١٦١٤٢٦٥٣٣٠".encode(),
        "１６１４２６５３３０".encode(),  # noqa: RUF001
        b"1" * 13,
        b"1" * 25,
        b"1" * 5000,
        b"nan",
        b"inf",
        b"0x6037b2f2",
        b"\xff",
        b"1614265330,1614265330",
    ],
)
def test_a_timestamp_that_is_not_plain_digits_is_refused(timestamp: bytes) -> None:
    assert refusal(headers(timestamp=timestamp)) == ("timestamp_malformed", 400)


@pytest.mark.parametrize("timestamp", [0, 1, 999_999_999_999])
def test_timestamps_have_up_to_twelve_digits(timestamp: int) -> None:
    assert verify(signed(ID, timestamp, BODY), BODY, KEYS, now=timestamp).timestamp == timestamp


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("direction", [1, -1])
def test_299_and_300_seconds_off_are_accepted_and_301_refused(direction: int, fraction: float) -> None:
    for off in (0, 299, 300):
        assert verify(headers(), BODY, KEYS, now=TIME + direction * off + fraction).timestamp == TIME
    now = TIME + direction * 301 + fraction
    assert refusal(headers(), now=now) == ("timestamp_out_of_range", 401)


def test_another_tolerance_is_kept_to_the_second() -> None:
    assert verify(headers(), BODY, KEYS, now=TIME + 10, tolerance=10)
    with pytest.raises(Rejected, match="lies 11 s in the past, the limit is 10 s"):
        verify(headers(), BODY, KEYS, now=TIME + 11, tolerance=10)
    with pytest.raises(Rejected, match="lies 11 s in the future"):
        verify(headers(), BODY, KEYS, now=TIME - 11, tolerance=10)


def test_the_age_is_told_only_to_who_can_sign() -> None:
    assert refusal(headers(), BODY + b"x", now=TIME + 9999) == ("signature_mismatch", 401)


@pytest.mark.parametrize(
    "signature",
    [
        b"v1",
        b"v1,",
        b",",
        b",,,",
        b"v1,a,b",
        GOOD,
        b"v1 " + GOOD,
        b"v1:" + GOOD,
        b"V1," + GOOD,
        b"v1,," + GOOD,
        b"v1," + GOOD + b",",
        b"v1," + GOOD + b"\n",
        b"v1,\t" + GOOD,
        b"v1,!!!!",
        b"v1," + b"\xff" * 44,
        b"v1," + GOOD.replace(b"+", b"-").replace(b"/", b"_"),
        b"v1," + GOOD.rstrip(b"="),
        b"v1," + GOOD + b"=",
        b"v1," + GOOD[:10] + b"!" + GOOD[10:],
        b"v1," + GOOD[:-2] + b"F=",
        b"v1," + base64.b64encode(b"x" * 31),
        b"v1," + base64.b64encode(b"x" * 33),
        b"v1," + base64.b64encode(b"x" * 64),
        b"v1a," + base64.b64encode(b"x" * 63),
        b"v2," + GOOD,
        b"v1a," + GOOD,
        b"v11," + GOOD,
        b"v1," + b"A" * 5000,
        b" ".join([b"v1"] * 33),
        b" ".join([b"v1," + GOOD] * 33),
        b" ".join([b"v1," + GOOD] * 20_000),
        b" " * 20_000 + b"v1," + GOOD,
    ],
)
def test_a_signature_header_without_an_entry_that_we_know_is_malformed(signature: bytes) -> None:
    assert refusal(headers(signature=signature)) == ("signature_malformed", 400)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"v1",
        b"v1,",
        b"v2,abc",
        b"v1a,xyz",
        b"v1,a,b",
        b"v1,!!!!",
        b"\xff\xfe",
        b"v1," + GOOD[:-1],
        b"v9," + GOOD,
    ],
)
def test_entries_that_we_do_not_know_are_passed_over_beside_a_good_one(garbage: bytes) -> None:
    good = SIGNATURE.encode()
    for together in (garbage + b" " + good, good + b" " + garbage, garbage + b" " + good + b" " + garbage):
        assert verify(headers(signature=together), BODY, KEYS, now=TIME)


def test_a_good_entry_may_be_the_last_of_32() -> None:
    wrong = b"v1," + base64.b64encode(b"x" * 32)
    assert verify(headers(signature=b" ".join([wrong] * 31 + [SIGNATURE.encode()])), BODY, KEYS, now=TIME)


def test_a_good_value_under_another_version_is_refused_beside_a_wrong_one() -> None:
    wrong = b"v1," + base64.b64encode(b"x" * 32)
    assert refusal(headers(signature=wrong + b" v2," + GOOD)) == ("signature_mismatch", 401)


@pytest.mark.parametrize(
    "body",
    [
        b'{"test":2432232314}',
        BODY + b"\n",
        BODY + b" ",
        b" " + BODY,
        BODY[:-1],
        b"",
        b"\xef\xbb\xbf" + BODY,
        BODY * 2,
    ],
)
def test_a_body_that_was_touched_is_refused(body: bytes) -> None:
    assert refusal(headers(), body) == ("signature_mismatch", 401)


@pytest.mark.parametrize("secrets", [SECRET, PRIVATE], ids=["hmac", "ed25519"])
def test_one_flipped_bit_anywhere_is_refused(secrets: str) -> None:
    keys = parse_verifying_keys(SECRET if secrets == SECRET else PUBLIC)
    whole = headers(signature=sign(ID, TIME, BODY, parse_signing_keys(secrets)).encode())[1:]
    whole.append((b"body", BODY))
    for part, (name, content) in enumerate(whole):
        for position in range(len(content) * 8):
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            touched = [*whole[:part], (name, bytes(flipped)), *whole[part + 1 :]]
            code, status = refusal(touched[:-1], touched[-1][1], keys)
            assert status in (400, 401), code


@given(st.from_regex(rb"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.integers(0, 10**12 - 1), st.binary())
@settings(deadline=None)
def test_text_moved_between_id_timestamp_and_body_never_validates(
    webhook_id: bytes, timestamp: int, body: bytes
) -> None:
    good = signed(webhook_id.decode(), timestamp, body)
    text = b".".join((webhook_id, str(timestamp).encode(), body))
    splits = 0
    for first in range(len(text)):
        for second in range(first + 1, min(len(text), first + 16)):
            if text[first : first + 1] == text[second : second + 1] == b".":
                moved = (text[:first], text[first + 1 : second], text[second + 1 :])
                splits += 1
                if moved == (webhook_id, str(timestamp).encode(), body):
                    assert verify(headers(moved[0], moved[1], good[2][1]), moved[2], KEYS, now=timestamp)
                else:
                    refusal(headers(moved[0], moved[1], good[2][1]), moved[2], now=timestamp)
    assert splits


@pytest.mark.parametrize(
    ("webhook_id", "timestamp", "body"),
    [
        (b"msg_1.1614265330", b"1", b"{}"),
        (b"msg", b"1614265330.1", b"{}"),
        (b"msg_1", b"161426533", b"0.1.{}"),
        (b"msg_11614265330", b"1", b"{}"),
    ],
)
def test_one_split_never_validates_another(webhook_id: bytes, timestamp: bytes, body: bytes) -> None:
    signature = signed("msg_1", 1614265330, b"1.{}")[2][1]
    assert verify(headers(b"msg_1", b"1614265330", signature), b"1.{}", KEYS, now=TIME)
    refusal(headers(webhook_id, timestamp, signature), body)


class TestSeveralKeys:
    def test_old_and_new_secrets_are_both_accepted(self) -> None:
        keys = parse_verifying_keys(f"{OTHER_SECRET} {SECRET}")
        for secret in (SECRET, OTHER_SECRET):
            assert verify(signed(ID, TIME, BODY, secret), BODY, keys, now=TIME)

    def test_a_delivery_signed_with_both_fits_either(self) -> None:
        both = signed(ID, TIME, BODY, f"{SECRET} {OTHER_SECRET}")
        assert both[2][1].count(b" ") == 1
        for secret in (SECRET, OTHER_SECRET):
            assert verify(both, BODY, parse_verifying_keys(secret), now=TIME)

    def test_a_secret_that_was_taken_out_is_refused(self) -> None:
        gone = signed(ID, TIME, BODY, SECRET)
        assert refusal(gone, keys=parse_verifying_keys(OTHER_SECRET)) == ("signature_mismatch", 401)

    def test_no_key_accepts_nothing(self) -> None:
        assert refusal(headers(), keys=()) == ("signature_mismatch", 401)

    def test_versions_stand_beside_each_other(self) -> None:
        both = signed(ID, TIME, BODY, f"{SECRET} {PRIVATE}")
        for secret in (SECRET, PUBLIC, f"{PUBLIC} {SECRET}"):
            assert verify(both, BODY, parse_verifying_keys(secret), now=TIME)


class TestEd25519:
    def test_goes_both_ways(self) -> None:
        made = signed(ID, TIME, BODY, PRIVATE)
        assert made[2][1].startswith(b"v1a,")
        assert len(made[2][1]) == len("v1a,") + 88
        assert verify(made, BODY, parse_verifying_keys(PUBLIC), now=TIME).body == BODY

    def test_does_not_fit_a_shared_secret(self) -> None:
        assert refusal(signed(ID, TIME, BODY, PRIVATE)) == ("signature_mismatch", 401)

    def test_under_the_name_of_the_other_version_is_refused(self) -> None:
        value = signed(ID, TIME, BODY, PRIVATE)[2][1].removeprefix(b"v1a,")
        keys = parse_verifying_keys(f"{SECRET} {PUBLIC}")
        for version in (b"v1", b"v2", b"v1b", b"V1A"):
            forged = headers(signature=version + b"," + value)
            assert refusal(forged, keys=keys) == ("signature_malformed", 400)

    def test_the_public_key_is_no_shared_secret(self) -> None:
        public = base64.b64decode(PUBLIC.removeprefix("whpk_"))
        forged = sign(ID, TIME, BODY, (SharedKey(public),)).encode()
        keys = parse_verifying_keys(PUBLIC)
        assert refusal(headers(signature=forged), keys=keys) == ("signature_mismatch", 401)
        relabelled = forged.replace(b"v1,", b"v1a,")
        assert refusal(headers(signature=relabelled), keys=keys) == ("signature_malformed", 400)

    def test_only_the_first_eight_entries_are_tried(self) -> None:
        wrong = b"v1a," + base64.b64encode(b"x" * 64)
        good = signed(ID, TIME, BODY, PRIVATE)[2][1]
        keys = parse_verifying_keys(PUBLIC)
        assert verify(headers(signature=b" ".join([wrong] * 7 + [good])), BODY, keys, now=TIME)
        eighth = headers(signature=b" ".join([wrong] * 8 + [good]))
        assert refusal(eighth, keys=keys) == ("signature_mismatch", 401)


class TestSigning:
    def test_needs_a_key(self) -> None:
        with pytest.raises(ValueError, match="no key"):
            sign(ID, TIME, BODY, ())

    @pytest.mark.parametrize(
        ("webhook_id", "timestamp"),
        [
            ("", TIME),
            ("a.b", TIME),
            ("é", TIME),
            ("a" * 65, TIME),
            ("a\r\nx: y", TIME),
            (ID, -1),
            (ID, 10**12),
        ],
    )
    def test_refuses_what_no_one_would_accept(self, webhook_id: str, timestamp: int) -> None:
        with pytest.raises(ValueError, match="wrong form"):
            sign(webhook_id, timestamp, BODY, parse_signing_keys(SECRET))


def test_a_refusal_repeats_nothing_of_the_request() -> None:
    canary = b"canary_canary"
    for hostile in (
        headers(webhook_id=canary + b"."),
        headers(timestamp=canary),
        headers(signature=canary),
        headers(webhook_id=canary),
    ):
        with pytest.raises(Rejected) as rejected:
            verify(hostile, BODY, KEYS, now=TIME)
        assert "canary" not in rejected.value.message


NAMES = st.sampled_from([b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"svix-id"]) | st.binary()
VALUES = (
    st.binary()
    | st.sampled_from([ID.encode(), str(TIME).encode(), SIGNATURE.encode()])
    | st.text("v12a,= +/AB", max_size=60).map(str.encode)
)
HOSTILE = st.lists(st.tuples(NAMES, VALUES), max_size=6) | st.builds(headers, VALUES, VALUES, VALUES)


@given(HOSTILE, st.binary() | st.just(BODY), st.floats(-1e15, 1e15) | st.just(float(TIME)))
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_the_one_signed_delivery_or_a_refusal(
    hostile: Headers, body: bytes, now: float
) -> None:
    keys = parse_verifying_keys(f"{SECRET} {PUBLIC}")
    with suppress(Rejected):
        delivery = verify(hostile, body, keys, now=now)
        assert delivery == Delivery(webhook_id=ID, timestamp=TIME, body=BODY)


@given(
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.integers(0, 10**12 - 1),
    st.binary(),
    st.integers(-300, 300),
    st.sampled_from(
        [(SECRET, SECRET), (PRIVATE, PUBLIC), (f"{OTHER_SECRET} {PRIVATE}", f"{SECRET} {PUBLIC}")]
    ),
)
@settings(deadline=None)
def test_what_we_sign_we_accept(
    webhook_id: str, timestamp: int, body: bytes, off: int, secrets: tuple[str, str]
) -> None:
    made = signed(webhook_id, timestamp, body, secrets[0])
    delivery = verify(made, body, parse_verifying_keys(secrets[1]), now=timestamp + off)
    assert delivery == Delivery(webhook_id=webhook_id, timestamp=timestamp, body=body)
