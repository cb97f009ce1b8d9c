"""Accept deliveries durably: the record and its job in Redis, or a synced file in the spool.

The way in is `inbox`; `records` is the live view, `queues` makes every job, `spool` keeps deliveries while
Redis is away. Nothing may be acknowledged here before it is durable, and no job may be enqueued apart from
the step that writes its record.
"""
