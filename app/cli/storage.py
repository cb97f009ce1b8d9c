"""The command `storage adopt`: go on with another storage."""

import os
from contextlib import closing

import click

from app import deployment
from app.cli.terminal import say
from app.storage.identity import Identity
from app.storage.store import Storage
from app.valkey.client import connect, find_redis

TIMEOUT = 30.0


@click.group(short_help="Go on with another storage.")
def storage() -> None:
    """What Redis knows of the storage that it belongs to.

    \b
    Example:
      OUTKEEP_STORAGE=s3://new-bucket outkeep storage adopt
    """


@storage.command(short_help="Let Redis belong to the storage of OUTKEEP_STORAGE from now on.")
def adopt() -> None:
    """Let Redis belong to the storage of OUTKEEP_STORAGE from now on.

    Each storage has an id, in its outkeep.json, and Redis notes it: a process whose storage is another one
    does not start. Where everything was copied, outkeep.json included, it is the same storage, and there is
    nothing to adopt. Restart all other processes with the same OUTKEEP_STORAGE afterwards.

    \b
    Example:
      OUTKEEP_STORAGE=s3://new-bucket outkeep storage adopt
    """
    settings, _ = deployment.prepare(os.environ)
    with closing(connect(find_redis(settings), timeout=TIMEOUT)) as redis:
        before, now = Identity(redis, Storage(settings.storage_url)).adopt()
    if before == now:
        say(f"{settings.storage_url} is the storage of this Redis already (id {now})")
    else:
        was = f"; before, it was that with the id {before}" if before else ""
        say(f"{settings.storage_url} (id {now}) is the storage of this Redis now{was}")
        say("restart all processes with this OUTKEEP_STORAGE")
