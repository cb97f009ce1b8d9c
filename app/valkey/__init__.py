"""The embedded Valkey: start it, adopt one that still runs, stop it.

The way in is `server.Embedded`; other commands find a running server with `running.read`. What is stored in
Redis is no concern of this package, and it must not talk to a Redis that `REDIS_URL` names.
"""
