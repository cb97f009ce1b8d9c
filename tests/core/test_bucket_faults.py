"""What the errors of stores mean, by their own words."""

import pytest

from app.core.bucket_faults import bucket_fault


def answered(status: int, code: str) -> str:
    """An error as the library words it."""
    return (
        "Generic S3 error: Error performing PUT https://s3.example.com/x in 3ms - Server returned non-2xx "
        f"status code: {status} Some Reason: <?xml version='1.0'?>\n<Error><Code>{code}</Code>"
        "<Message>AKIAIOSFODNN7EXAMPLE is what was given</Message></Error>"
    )


@pytest.mark.parametrize(
    ("status", "word", "code", "variable"),
    [
        (404, "NoSuchBucket", "bucket_missing", "OUTKEEP_STORAGE"),
        (404, "", "bucket_missing", "OUTKEEP_STORAGE"),
        (403, "InvalidAccessKeyId", "storage_denied", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "storage_denied", "AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", "storage_denied", "AWS_ACCESS_KEY_ID"),
        (401, "", "storage_denied", "AWS_ACCESS_KEY_ID"),
        (403, "ExpiredToken", "credentials_expired", "AWS_SESSION_TOKEN"),
        (400, "ExpiredToken", "credentials_expired", "AWS_SESSION_TOKEN"),
        (400, "AuthorizationHeaderMalformed", "storage_unusable", "AWS_REGION"),
        (301, "PermanentRedirect", "storage_unusable", "AWS_REGION"),
        (301, "", "storage_unusable", "AWS_REGION"),
    ],
)
def test_a_mistake_names_its_variable(status: int, word: str, code: str, variable: str) -> None:
    fault = bucket_fault("s3", answered(status, word))

    assert (fault.code, fault.needs_operator) == (code, True)
    assert variable in fault.message
    assert "\n" not in fault.message
    assert "AKIAIOSFODNN7EXAMPLE" not in fault.message


@pytest.mark.parametrize(
    ("status", "word"), [(500, "InternalError"), (503, "SlowDown"), (429, ""), (404, "NoSuchUpload")]
)
def test_trouble_of_the_store_is_an_outage(status: int, word: str) -> None:
    fault = bucket_fault("s3", answered(status, word))

    assert (fault.code, fault.needs_operator) == ("storage_unavailable", False)
    assert f"{status} {word}".strip() in fault.message


def test_a_clock_that_is_off_is_named_and_may_heal() -> None:
    fault = bucket_fault("s3", answered(403, "RequestTimeTooSkewed"))

    assert not fault.needs_operator
    assert "NTP" in fault.message


def test_silence_names_the_place_and_the_variable_and_may_heal() -> None:
    text = "Generic S3 error: PUT https://minio.example.com/keep/x?uploadId=1 in 2s - HTTP error"
    fault = bucket_fault("s3", text)

    assert not fault.needs_operator
    assert "no answer from https://minio.example.com;" in fault.message
    assert "AWS_ENDPOINT_URL" in fault.message


@pytest.mark.parametrize(
    ("scheme", "text", "variable"),
    [
        (
            "s3",
            "PUT http://169.254.169.254/latest/api/token in 1s - HTTP error",
            "AWS_ACCESS",
        ),
        ("s3", "Generic S3 error: Missing AccessKeyId", "AWS_ACCESS_KEY_ID"),
        (
            "gs",
            "GET http://169.254.169.254/computeMetadata/v1/x",
            "GOOGLE_SERVICE_ACCOUNT",
        ),
        ("gs", "GCP credential error: Unable to open service account file from /x", "GOOGLE_SERVICE_ACCOUNT"),
        ("az", "Generic MicrosoftAzure error: Account must be specified", "AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_missing_credentials_name_the_variables_of_the_store(scheme: str, text: str, variable: str) -> None:
    fault = bucket_fault(scheme, text)

    assert (fault.code, fault.needs_operator) == ("storage_denied", True)
    assert variable in fault.message


def test_plain_http_names_the_variable_that_allows_it() -> None:
    fault = bucket_fault("s3", "HTTP error: builder error\n\n source: BadScheme")

    assert fault.needs_operator
    assert "AWS_ALLOW_HTTP" in fault.message


def test_the_words_of_azure_are_known() -> None:
    assert bucket_fault("az", answered(404, "ContainerNotFound")).code == "bucket_missing"
    assert "AZURE_STORAGE_ACCOUNT_KEY" in bucket_fault("az", answered(403, "AuthenticationFailed")).message


def test_a_text_of_any_length_makes_one_short_line() -> None:
    fault = bucket_fault("s3", "x" * 100_000 + "\n" + "y" * 100_000)

    assert len(fault.message) < 400
    assert not fault.needs_operator


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (
            "Unable to open service account file from /run/secrets/gcs.json: No such file or directory",
            "cannot open /run/secrets/gcs.json: No such file or directory; mend GOOGLE_SERVICE_ACCOUNT",
        ),
        (
            'Unable to open service account file from {"private_key": "a secret"}: No such file or directory',
            "cannot open the file that it names; mend GOOGLE_SERVICE_ACCOUNT",
        ),
        (
            'Unable to decode service account file: invalid type: string "a secret" at line 1',
            "what GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS names is no service account",
        ),
    ],
)
def test_a_file_of_credentials_is_named_and_not_quoted(said: str, complaint: str) -> None:
    for before in ("Generic GCS error: GCP credential error: ", "Generic GCS error: "):
        fault = bucket_fault("gs", f"{before}{said}\n\nDebug source:\nGeneric {{ }}")

        assert (fault.code, fault.needs_operator) == ("storage_denied", True)
        assert fault.message.startswith(complaint)


def test_a_variable_is_named_once() -> None:
    fault = bucket_fault("gs", "error for http://169.254.169.254/computeMetadata/v1/instance")

    assert fault.message == (
        "no credentials are found; set GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS"
    )
