"""The command group, and how errors reach a person: one line each, never a traceback."""

import sys

import click
from redis.exceptions import AuthenticationError, RedisError

from app.cli import (
    account,
    doctor,
    handlers,
    look,
    predict,
    rebuild,
    reconcile,
    replay,
    rm,
    run,
    send,
    show,
    storage,
    verify,
)
from app.cli.terminal import escape_what_does_not_fit, say
from app.core.certificates import redis_fault
from app.core.errors import ConfigurationError, OutkeepError

FAILED = 1
MISUSE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="outkeep")
def cli() -> None:
    """Keep what Replicate predictions produce, and start the next step.

    \b
    Examples:
      outkeep demo                    see it work, with nothing configured
      outkeep up                      receiver, workers and storage in one terminal
      outkeep ls                      what was received, and how far it is
    """


for command in (
    run.up, run.serve, run.work, run.healthcheck, run.demo, run.simulate,
    send.send, predict.run, look.ls, show.show, look.config, handlers.handlers, replay.replay,
    rebuild.rebuild, verify.verify, reconcile.reconcile, account.secret, account.url, account.link, rm.rm,
    doctor.doctor, storage.storage,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Entry point; exit codes: 0, 1 (failed), 2 (misuse or configuration)."""
    escape_what_does_not_fit()
    try:
        cli(prog_name="outkeep")
    except ConfigurationError as error:
        for problem in error.problems:
            say(f"outkeep: {problem}", err=True)
        sys.exit(MISUSE)
    except OutkeepError as error:
        say(f"outkeep: {error.message}", err=True)
        sys.exit(FAILED)
    except AuthenticationError:
        say("outkeep: Redis refuses the user or password of REDIS_URL", err=True)
        sys.exit(FAILED)
    except RedisError as error:
        unanswered = f"Redis does not answer ({type(error).__name__}); is REDIS_URL right?"
        wrong = redis_fault(str(error))
        say(f"outkeep: Redis: {wrong}" if wrong else f"outkeep: {unanswered}", err=True)
        sys.exit(FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"outkeep: {where}{error.strerror or error}", err=True)
        sys.exit(FAILED)
