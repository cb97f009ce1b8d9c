"""Every error of ours, by who must act: the sender, time, or the operator."""

from collections.abc import Sequence


class OutkeepError(Exception):
    """Root of the tree.

    `code` is stable and the same in answers, logs, metrics and manifests. The message is shown to
    people: it says what is wrong, where, and what to do, and never contains a secret.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Rejected(OutkeepError):
    """The sender must change something. `status` is the HTTP status to answer with."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(code, message)
        self.status = status


class Unusable(Rejected):
    """Signed, but not a prediction that we can work with: it is kept aside in quarantine."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message, status=202)


class Transient(OutkeepError):
    """Time may heal it. `retry_after` is what the other side asked us to wait, in seconds."""

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after


class Crowded(Transient):
    """Nothing was tried, since others take all places of `key`; come again after `wait` seconds."""

    def __init__(self, message: str, *, key: str, wait: float) -> None:
        super().__init__("crowded", message, retry_after=wait)
        self.key = key
        self.wait = wait


class StorageFailure(Transient):
    """Our own storage or disk failed: that says nothing about a file, nor about who is to be told of it."""


class Permanent(OutkeepError):
    """Trying again cannot help; the operator must look."""


class Removed(Permanent):
    """Somebody had the prediction removed: nothing may bring it back, or tell of what is left of it."""

    def __init__(self, message: str) -> None:
        super().__init__("removed", message)


class ConfigurationError(Permanent):
    """Settings refuse to start. `problems` holds one clear line for each mistake, all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("configuration", "; ".join(problems))
        self.problems = tuple(problems)
