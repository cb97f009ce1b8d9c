"""The part of the sweep that tells how jobs of the user's ended: on their own workers nobody else does."""

from collections import Counter
from collections.abc import Sequence

from redis import Redis

from app.core.repairs import Repair
from app.storage import Storage
from app.user_jobs import tell, untold


class Ends:
    """Over the queues named `names`."""

    def __init__(self, redis: Redis, storage: Storage, names: Sequence[str]) -> None:
        self._redis = redis
        self._storage = storage
        self._names = names

    def run(self) -> Counter[Repair]:
        """Write the outcomes that are missing. Raises redis-py's errors and the storage's."""
        for job_id, end in untold(self._redis, self._names):
            tell(self._redis, self._storage, job_id, end)
        return Counter()
