"""What Redis knows of follow-up predictions that are being created, so that each is created once.

Replicate's API takes no idempotency key. So what is about to be created is written down first: a run that
finds such an intent does not create, but looks for what an earlier run may have created.
"""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import cast

from redis import Redis
from redis.lock import Lock

from app.core.names import FOLLOW_UPS_OPEN, DeliveryRef, follow_up_child, follow_up_key, follow_up_lock

TTL = 30 * 86400
"""Seconds for which an intent is kept; the outcome file beside the manifest is the lasting memory."""

SOUGHT_FOR = timedelta(days=1)
"""How long what may have been created is waited for; once it has ended, for less than its files live."""

LEASE = 20
"""Seconds after which the lease of a dead run falls to another; a living one renews it."""

_INTEND = """
-- KEYS: 1 lease, 2 intent, 3 open ones  ARGV: 1 owner, 2 ttl of the lease (s), 3 intent, 4 its ttl (s),
-- 5 place, 6 its time and fingerprint
-- Who has lost the lease must not create: another run may be creating.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
redis.call('HSET', KEYS[3], ARGV[5], ARGV[6])
return 1
"""


@dataclass(frozen=True)
class Intent:
    """A creation that may have happened.

    at: when the API was asked (RFC 3339). input: fingerprint of the input. version: if one was asked for.
    webhook: the URL that was given. child: the id, once it is known.
    """

    at: str
    input: str
    version: str | None
    webhook: str | None
    child: str | None = None


class FollowUps:
    """Over one Redis connection. Methods block; errors are redis-py's."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._intend = redis.register_script(_INTEND)

    def lease(self, ref: DeliveryRef) -> Lock:
        """What the one run that may create this follow-up holds."""
        lease: Lock = self._redis.lock(follow_up_lock(*ref), timeout=LEASE, thread_local=False)
        return lease

    def intent(self, ref: DeliveryRef) -> Intent | None:
        """What an earlier run was about to create."""
        data = cast(bytes | None, self._redis.get(follow_up_key(*ref)))
        return Intent(**json.loads(data)) if data is not None else None

    def intend(self, ref: DeliveryRef, lease: Lock, intent: Intent) -> bool:
        """Write down what is created next; False when the lease is lost, and then nothing may be created."""
        keys = [follow_up_lock(*ref), follow_up_key(*ref), FOLLOW_UPS_OPEN]
        text = json.dumps(asdict(intent))
        entry = f"{intent.at} {intent.input}"
        return bool(
            self._intend(keys=keys, args=[lease.local.token or b"", LEASE, text, TTL, ":".join(ref), entry])
        )

    def forget(self, ref: DeliveryRef) -> None:
        """Note that nothing was created."""
        with self._redis.pipeline() as pipeline:
            pipeline.delete(follow_up_key(*ref))
            pipeline.hdel(FOLLOW_UPS_OPEN, ":".join(ref))
            pipeline.execute()

    def may_seek(self, given: str, now: datetime) -> bool:
        """Whether a prediction with an input of this fingerprint may be one that a job has yet to find."""
        sought = False
        for ref, entry in cast(dict[bytes, bytes], self._redis.hgetall(FOLLOW_UPS_OPEN)).items():
            at, _, known = entry.decode().partition(" ")
            if now - datetime.fromisoformat(at) > SOUGHT_FOR:
                self._redis.hdel(FOLLOW_UPS_OPEN, ref.decode())  # its job has ended, whatever it made
            elif known == given:
                sought = True
        return sought

    def claim(self, ref: DeliveryRef, child: str) -> bool:
        """Whether a prediction that was found is this follow-up, and not known as another one."""
        key, mine = follow_up_child(child), ":".join(ref)
        return bool(self._redis.set(key, mine, nx=True, ex=TTL)) or self._redis.get(key) == mine.encode()

    def remember(self, ref: DeliveryRef, intent: Intent, child: str) -> None:
        """Note what was created or found."""
        with self._redis.pipeline() as pipeline:
            pipeline.set(follow_up_child(child), ":".join(ref), ex=TTL)
            pipeline.set(follow_up_key(*ref), json.dumps(asdict(replace(intent, child=child))), ex=TTL)
            pipeline.hdel(FOLLOW_UPS_OPEN, ":".join(ref))
            pipeline.execute()
