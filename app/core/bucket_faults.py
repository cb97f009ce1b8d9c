"""What a failed TLS handshake means, in the words of OpenSSL (redis-py) and of rustls (obstore)."""

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from enum import StrEnum

from app.core.notation import shown_path

_UNTRUSTED = (
    (
        r"issuer certificate|self-signed certificate|UnknownIssuer|CaUsedAsEndEntity|invalid CA certificate",
        "its certificate is of a CA that is not known here; {cure}",
    ),
    (
        r"(?:hostname|IP address) mismatch|is not valid for|InvalidCertificate\(\s*NotValidForName",
        "its certificate is for another name; use the name that stands in it",
    ),
)
_OTHERS = (
    (
        r"certificate has expired|InvalidCertificate\(\s*Expired",
        "its certificate has expired; renew it there, or set the clock of this host right",
    ),
    (
        r"certificate is not yet valid|InvalidCertificate\(\s*NotValidYet",
        "its certificate is not valid yet; set the clock of this host right",
    ),
    (r"certificate verify failed|InvalidCertificate", "its certificate is refused here"),
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|InvalidContentType", "it speaks no TLS there; {plain}"),
)
_WANTS_OURS = re.compile(r"ALERT_CERTIFICATE_REQUIRED|CertificateRequired|ALERT_HANDSHAKE_FAILURE")
_NO_FILE = re.compile(r"Error (?:2|13|21) connecting to (?!unix)")

REDIS_CA = "name its CA with ssl_ca_certs=/path/ca.pem in REDIS_URL, or with SSL_CERT_FILE for everything"


def is_untrusted(text: str) -> bool:
    """Whether an error says that only another list of CAs, or another name, could heal it."""
    return any(re.search(pattern, text, re.IGNORECASE) for pattern, _ in _UNTRUSTED)


def certificate_fault(text: str, *, cure: str, plain: str) -> str | None:
    """What is wrong with TLS, and what to do; None when `text` is about something else.

    `cure` is how another CA is made known, `plain` how one does without TLS.
    """
    for pattern, message in (*_UNTRUSTED, *_OTHERS):
        if re.search(pattern, text, re.IGNORECASE):
            return message.format(cure=cure, plain=plain)
    return None


def redis_fault(text: str) -> str | None:
    """The same for an error of redis-py."""
    if _WANTS_OURS.search(text):
        return "it wants a certificate of ours; name it with ssl_certfile and ssl_keyfile in REDIS_URL"
    if _NO_FILE.search(text):
        return "a file that REDIS_URL names (ssl_ca_certs, ssl_certfile, ssl_keyfile) cannot be read"
    return certificate_fault(text, cure=REDIS_CA, plain="write redis:// in REDIS_URL")


_STATUS = re.compile(r"status code: ([0-9]{3})", re.ASCII)
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>", re.ASCII)
_PLACE = re.compile(r"https?://[^/\s?]{1,200}", re.ASCII)

NO_ANSWER = "storage_unanswered"
"""The code of a store that did not answer at all."""

LONGEST = 200
"""Characters of a text that we do not know: stores put whole pages into their errors."""


class Lack(StrEnum):
    """What a store may not be able to do, with what we do instead."""

    CREATE = "no conditional put (`If-None-Match: *`): a manifest is written after a look, and read back"
    BULK = "no deletion of many objects at once: they are removed one by one"
    RANGE = "no ranges: a part of a file is served from the whole of it"
    PARTS = "no uploads in parts: files are sent whole, and those over {whole} MiB cannot be kept"
    HEAD = "no HEAD: a GET that is broken off tells of an object"
    LINK = "no signed links: files are served by Outkeep itself"


WHOLE = 128
"""MiB of the largest file that is sent from memory."""


def lacking(lacks: Collection[Lack]) -> str:
    """One sentence about what a store lacks; empty when that is nothing."""
    named = "; ".join(lack.value.format(whole=WHOLE) for lack in Lack if lack in lacks)
    return f"this store has {named}" if named else ""


@dataclass(frozen=True)
class Fault:
    """One cause. `message` names the variable to look at and never holds what came from the store."""

    code: str
    message: str
    needs_operator: bool
    """Whether no time heals it: such a fault stops a start, while an outage of the store must not."""


@dataclass(frozen=True)
class _Variables:
    """How the variables of one kind of store are called."""

    key: str
    secret: str
    session: str
    endpoint: str
    region: str
    plain: str


_VARIABLES = {
    "s3": _Variables(
        key="AWS_ACCESS_KEY_ID",
        secret="AWS_SECRET_ACCESS_KEY",  # noqa: S106  names, not values
        session="AWS_SESSION_TOKEN",
        endpoint="AWS_ENDPOINT_URL",
        region="AWS_REGION",
        plain="AWS_ALLOW_HTTP",
    ),
    "gs": _Variables(
        key="GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
        secret="GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",  # noqa: S106
        session="GOOGLE_APPLICATION_CREDENTIALS",
        endpoint="GOOGLE_BASE_URL",
        region="OUTKEEP_STORAGE",
        plain="GOOGLE_ALLOW_HTTP",
    ),
    "az": _Variables(
        key="AZURE_STORAGE_ACCOUNT_NAME",
        secret="AZURE_STORAGE_ACCOUNT_KEY",  # noqa: S106
        session="AZURE_STORAGE_SAS_TOKEN",
        endpoint="AZURE_STORAGE_ENDPOINT",
        region="OUTKEEP_STORAGE",
        plain="AZURE_ALLOW_HTTP",
    ),
}

_MISTAKES = (
    (
        {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"},
        "bucket_missing",
        "there is no such bucket; make it, or mend OUTKEEP_STORAGE",
    ),
    ({"InvalidAccessKeyId"}, "storage_denied", "the key is not known there; mend {key}"),
    (
        {"SignatureDoesNotMatch", "AuthenticationFailed"},
        "storage_denied",
        "the secret does not fit the key; mend {secret}",
    ),
    (
        {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredAuthenticationToken"},
        "credentials_expired",
        "the credentials have expired; renew {session}",
    ),
    (
        {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraint"},
        "storage_unusable",
        "the bucket lies elsewhere; mend {region} or {endpoint}",
    ),
)
"""What stores call it in their answers, our code, and what to do."""

_LATE = frozenset({"RequestTimeTooSkewed", "RequestExpired"})

# Where credentials are asked for when none are set, and how the library says that one of a pair is missing.
_NO_CREDENTIALS = re.compile(
    r"169\.254\.(?:169\.254|170\.2)|/latest/(?:api/token|meta-data)|/computeMetadata/|/metadata/identity/"
    r"|Missing ?(?:AccessKeyId|SecretAccessKey)|Account must be specified|credential error: "
)
_ACCOUNT_FILE = re.compile(r"Unable to open service account file from ([^\n]{1,300})")
_ACCOUNT = "Unable to decode service account"
_PLAIN = "BadScheme"

_CURE = "set SSL_CERT_FILE to a file with it and all other CAs that are needed"

_DENIED = frozenset({401, 403})
_NOT_FOUND = 404
_MOVED = frozenset({301, 302, 307, 308})


_PASSING = frozenset({408, 425, 429})
_UNKNOWN_CALL = frozenset({501, 505})
_NOT_IMPLEMENTED = frozenset({"NotImplemented", "MethodNotAllowed", "XNotImplemented"})
_ODD_ANSWER = re.compile(
    r"non-partial response|Content-Range header|requested range|DeleteObjects response"
    r"|ETag Header missing|invalid multipart response",
    re.I,
)
_OF_THE_MOMENT = frozenset({"RequestTimeout", "BadDigest", "IncompleteBody", "NoSuchBucket"})


def is_refusal(scheme: str, text: str) -> bool:
    """Whether an error may say that a store does not know what it was asked: the plain call shows that.

    It is none when the store is away, or calls a mistake by its name. A denial may be one: stores and
    gateways deny what they do not know, or call a signature wrong whose header they have dropped.
    """
    found, answered = _CODE.search(text), _STATUS.search(text)
    word, status = found[1] if found else "", int(answered[1]) if answered else 0
    mistake = _named(_VARIABLES[scheme], word) if word != "SignatureDoesNotMatch" else None
    if word in _OF_THE_MOMENT or mistake is not None:
        return False
    if 400 <= status < 500:  # noqa: PLR2004
        return status not in _PASSING
    return (
        status in _UNKNOWN_CALL or word in _NOT_IMPLEMENTED or bool(not status and _ODD_ANSWER.search(text))
    )


def bucket_fault(scheme: str, text: str) -> Fault:
    """Read the `text` of an error of a store under `s3://`, `gs://` or `az://`."""
    names = _VARIABLES[scheme]
    found, answered = _CODE.search(text), _STATUS.search(text)
    word, status = found[1] if found else "", int(answered[1]) if answered else 0
    unusable = _account(names, text)
    if unusable is not None:
        return unusable
    if _NO_CREDENTIALS.search(text):
        both = names.key if names.key == names.secret else f"{names.key} and {names.secret}"
        return _mistake("storage_denied", f"no credentials are found; set {both}")
    named = _named(names, word)
    if named is not None:
        return named
    if _PLAIN in text:
        message = f"{names.endpoint} is plain http, which is refused unless {names.plain}=true"
        return _mistake("storage_unusable", message)
    return _by_status(names, word, status, text)


def _account(names: _Variables, text: str) -> Fault | None:
    """What is wrong with a file of credentials. Why it cannot be read may quote it, and is not shown."""
    path = _ACCOUNT_FILE.search(text)
    if path is not None:
        return _mistake("storage_denied", f"cannot open {shown_path(path[1])}; mend {names.key}")
    if _ACCOUNT in text:
        return _mistake("storage_denied", f"what {names.key} names is no service account in JSON")
    return None


def _named(names: _Variables, word: str) -> Fault | None:
    for words, code, message in _MISTAKES:
        if word in words:
            return _mistake(code, f"{message.format_map(asdict(names))} ({word})")
    if word in _LATE:
        message = f"the clocks differ too much ({word}); let this host keep time by NTP"
        return Fault("storage_denied", message, needs_operator=False)
    return None


def _by_status(names: _Variables, word: str, status: int, text: str) -> Fault:
    shown = f"{status} {word}".strip()
    if status in _DENIED:
        message = f"access is denied ({shown}); let {names.key} read, write, list and delete there"
        return _mistake("storage_denied", message)
    if status == _NOT_FOUND and not word:
        return _mistake("bucket_missing", _MISTAKES[0][2])  # objects that are missing are no errors
    if status in _MOVED:
        return _mistake("storage_unusable", f"the bucket lies elsewhere ({shown}); mend {names.region}")
    if status:
        return _outage(f"it answers {shown}")
    if wrong := certificate_fault(
        text, cure=_CURE, plain=f"write http in {names.endpoint}, and {names.plain}=true"
    ):
        return Fault("storage_certificate", wrong, needs_operator=is_untrusted(text))
    place = _PLACE.search(text)
    where = f"no answer from {place[0]}" if place else text.partition("\n")[0][:LONGEST]
    message = f"{where}; if that lasts, look at {names.endpoint} and the network"
    return Fault(NO_ANSWER, message, needs_operator=False)


def _mistake(code: str, message: str) -> Fault:
    return Fault(code, message, needs_operator=True)


def _outage(message: str) -> Fault:
    return Fault("storage_unavailable", message, needs_operator=False)
