"""What keeps a thread from its work, said once and not each time."""

import logging

from redis.exceptions import RedisError

from app.core.errors import OutkeepError, Transient

log = logging.getLogger("outkeep.reconcile")


class Trouble:
    """Of the work called `work`, which is begun again after `seconds`."""

    def __init__(self, work: str, seconds: float) -> None:
        self._work = work
        self._seconds = seconds
        self._code = ""

    def begins(self, error: Exception) -> None:
        """Say why nothing is done, as long as that does not change."""
        code = error.code if isinstance(error, OutkeepError) else type(error).__name__
        if code != self._code:
            expected = isinstance(error, OutkeepError | RedisError)
            level = logging.WARNING if isinstance(error, Transient | RedisError) else logging.ERROR
            facts = {"code": code, "seconds": self._seconds}
            trace = None if expected else error
            log.log(level, "%s is put off: %s", self._work, error, extra=facts, exc_info=trace)
        self._code = code

    def ends(self) -> None:
        """Say that the work goes on, if it did not."""
        if self._code:
            log.info("%s goes on", self._work)
        self._code = ""
