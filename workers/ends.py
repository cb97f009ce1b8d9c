"""The part of the sweep that tells how jobs of the user's ended: on their own workers nobody else does."""

from collections import Counter
from collections.abc import Iterator, Sequence

from redis import Redis
from rq.job import Job

from app import queues
from app.core.names import split_handle_job_id
from app.core.repairs import Repair
from app.storage import Storage
from app.user_jobs import FIELDS, End, tell

PAGE = 1000


class Ends:
    """Over the queues named `names`."""

    def __init__(self, redis: Redis, storage: Storage, names: Sequence[str]) -> None:
        self._redis = redis
        self._storage = storage
        self._names = names

    def run(self) -> Counter[Repair]:
        """Write the outcomes that are missing. Raises redis-py's errors and the storage's."""
        for name in self._names:
            ended = [job_id for job_id in self._ended(name) if split_handle_job_id(job_id)]
            for first in range(0, len(ended), PAGE):
                for job_id, end in self._news(ended[first : first + PAGE]):
                    tell(self._redis, self._storage, job_id, end)
        return Counter()

    def _ended(self, name: str) -> Iterator[str]:
        queue = queues.queue(name, self._redis)
        for registry in (
            queue.finished_job_registry,
            queue.failed_job_registry,
            queue.canceled_job_registry,
        ):
            yield from registry.get_job_ids(cleanup=False)

    def _news(self, job_ids: Sequence[str]) -> Iterator[tuple[str, End]]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(Job.key_for(job_id), FIELDS)
            answers = pipeline.execute()
        for job_id, answer in zip(job_ids, answers, strict=True):
            end = End(answer)
            if end.is_news:
                yield job_id, end
