"""What a failed TLS handshake means, in the words of OpenSSL (redis-py) and of rustls (obstore)."""

import re

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
