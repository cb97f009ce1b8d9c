"""The part of the sweep that tells how jobs of the user's ended: on their own workers nobody else does."""

from collections import Counter

from redis import Redis

from app.core.repairs import Repair
from app.maintain.backlog import telling_queues
from app.maintain.user_jobs import tell, untold
from app.storage.store import Storage


class Ends:
    """Over all queues there are: handlers may have named others when the jobs were made."""

    def __init__(self, redis: Redis, storage: Storage) -> None:
        self._redis = redis
        self._storage = storage

    def run(self) -> Counter[Repair]:
        """Write the outcomes that are missing. Raises redis-py's errors and the storage's."""
        for job_id, end in untold(self._redis, telling_queues(self._redis)):
            tell(self._redis, self._storage, job_id, end)
        return Counter()
