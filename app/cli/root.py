"""The command group, and how errors reach a person: one line each, never a traceback."""

import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module

import click

from app.cli.terminal import escape_what_does_not_fit, say
from app.core.errors import ConfigurationError, OutkeepError
from app.telemetry.interrupts import fatal_interrupts

FAILED = 1
MISUSE = 2

COMMANDS = {
    "album": ("album:album", "Share outputs by a link that ends, and can be revoked."),
    "config": ("config:config", "Show every setting, where it comes from, and what is wrong."),
    "demo": ("run:demo", "See it work, with a simulated Replicate."),
    "doctor": ("doctor:doctor", "Say what could lose data or hide trouble here."),
    "handlers": ("handlers:handlers", "List the handlers: their state, what waits, dead letters."),
    "healthcheck": ("run:healthcheck", "Tell whether a part of this host lives; for containers."),
    "link": ("account:link", "Print fresh links to the stored files of a prediction."),
    "ls": ("ls:ls", "List what was received, the latest change first."),
    "open": ("account:open_dashboard", "Open the dashboard, by a link that signs in once."),
    "rebuild": ("rebuild:rebuild", "Restore from storage what Redis has lost."),
    "reconcile": ("reconcile:reconcile", "Find what finished at Replicate and never arrived."),
    "replay": ("replay:replay", "Tell handlers again, from what is stored."),
    "rm": ("rm:rm", "Remove everything of predictions and trainings."),
    "run": ("predict:run", "Run MODEL at Replicate and keep what it makes."),
    "secret": ("account:secret", "Print the secret that Replicate signs webhooks with."),
    "send": ("send:send", "Send one signed delivery, to try a receiver out."),
    "serve": ("run:serve", "Run the receiver: webhooks, stored files, health."),
    "show": ("show:show", "Show one prediction or training, and who was told."),
    "simulate": ("run:simulate", "Run a local Replicate, for development without paying."),
    "storage": ("storage:storage", "Go on with another storage."),
    "up": ("run:up", "Run everything in one terminal."),
    "url": ("account:url", "Print the address to give to Replicate as `webhook`."),
    "verify": ("verify:verify", "Read stored files again, and compare them with the manifests."),
    "work": ("run:work", "Run one worker process: persist, notify, both, or handle."),
}
"""Command → where it is defined, and its line in the help. What one process runs is loaded, and no more."""


class Commands(MutableMapping[str, click.Command]):
    """Loads a command when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = COMMANDS[name][0].partition(":")
        with fatal_interrupts():
            command: click.Command = getattr(import_module(f"app.cli.{module}"), attribute)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError("a command is listed in COMMANDS")

    def __delitem__(self, name: str) -> None:
        raise TypeError("a command is listed in COMMANDS")


class Cli(click.Group):
    """Its help is shown without loading any command."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands in the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(COMMANDS.items())])


@click.group(
    cls=Cli,
    commands=Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="outkeep")
def cli() -> None:
    """Keep what Replicate predictions produce, and start the next step.

    \b
    Examples:
      outkeep demo                    see it work, with nothing configured
      outkeep up                      receiver, workers and storage in one terminal
      outkeep ls                      what was received, and how far it is
    """


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
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"outkeep: {where}{error.strerror or error}", err=True)
        sys.exit(FAILED)
    except Exception as error:
        reason = _of_redis(error)
        if reason is None:
            raise
        say(f"outkeep: {reason}", err=True)
        sys.exit(FAILED)


def _of_redis(error: Exception) -> str | None:
    """What to tell a person of an error of Redis' client; None for any other."""
    from redis.exceptions import AuthenticationError, RedisError

    from app.core.bucket_faults import redis_fault

    if not isinstance(error, RedisError):
        return None
    if isinstance(error, AuthenticationError):
        return "Redis refuses the user or password of REDIS_URL"
    if wrong := redis_fault(str(error)):
        return f"Redis: {wrong}"
    return f"Redis does not answer ({type(error).__name__}); is REDIS_URL right?"
