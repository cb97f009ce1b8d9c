"""Commands that run something: up, serve, work, healthcheck, demo, simulate."""

import os
import sys
from pathlib import Path

import click

from app import deployment
from app.cli.terminal import say
from app.core.names import HANDLE_QUEUE, NOTIFY_QUEUE, PERSIST_QUEUE
from app.receive.listening import refusal
from app.telemetry import logs as telemetry
from app.telemetry.redaction import secrets_of
from app.up import lifeline
from app.valkey.client import expect_redis, find_redis

_QUEUES = (PERSIST_QUEUE, NOTIFY_QUEUE, HANDLE_QUEUE)


@click.command(short_help="Run everything in one terminal.")
@click.option("--lifeline", "on_lifeline", is_flag=True, hidden=True)
def up(*, on_lifeline: bool) -> None:
    """Run everything in one terminal: receiver, workers, scheduler, and an embedded Valkey.

    What dies is restarted. Ctrl-C or SIGTERM stops it all. With REDIS_URL set, that server is used instead
    of the embedded one.

    \b
    Example:
      REPLICATE_WEBHOOK_SECRET=whsec_... outkeep up
    """
    from app.up import everything

    sys.exit(everything.run(os.environ, has_parent=on_lifeline))


@click.command()
@click.option("--lifeline", "on_lifeline", is_flag=True, hidden=True)
def serve(*, on_lifeline: bool) -> None:
    """Run the receiver: webhooks, stored files, health.

    \b
    Example:
      REDIS_URL=redis://localhost OUTKEEP_SECRET_KEY_FILE=/run/secrets/key outkeep serve
    """
    from app import main

    if on_lifeline:
        lifeline.watch()
    settings, handlers = deployment.prepare(os.environ, receives=True)
    secrets = secrets_of(settings, handlers)
    telemetry.configure(settings.log_level, settings.log_format, role="receiver", secrets=secrets)
    find = expect_redis if on_lifeline else find_redis
    main.serve(deployment.connect(settings, handlers, find))


def _together(_: click.Context, __: click.Parameter, queues: tuple[str, ...]) -> tuple[str, ...]:
    if HANDLE_QUEUE in queues and len(set(queues)) > 1:
        raise click.BadParameter(f"{HANDLE_QUEUE} runs in a process of its own: start another one for it")
    return queues


@click.command(short_help="Run one worker process: persist, notify, both, or handle.")
@click.argument("queues", type=click.Choice(_QUEUES), nargs=-1, required=True, callback=_together)
@click.option(
    "--path",
    default=".",
    type=click.Path(exists=True, file_okay=False),
    help="Folder from which handler code is imported.",
)
def work(queues: tuple[str, ...], path: str) -> None:
    """Run one worker process: persist keeps outputs, notify tells handlers, handle runs their jobs.

    One process may do persist and notify. Start as many as you like, on as many hosts as you like.

    \b
    Examples:
      outkeep work persist notify
      outkeep work persist
      outkeep work handle --path /srv/myproject
    """
    # `app` never imports `workers`, so that the receiver cannot grow into them: another program takes over.
    # -P: the working directory may hold a `workers` of its own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "workers", *queues, "--path", path])  # noqa: S606


@click.command(short_help="Tell whether a part of this host lives; for containers.")
@click.argument("part", type=click.Choice(["receiver", *_QUEUES]), default="receiver")
def healthcheck(part: str) -> None:
    """Exit 0 when a part of this host lives, by default the receiver, and 1 when not; for containers.

    \b
    Examples:
      outkeep healthcheck
      outkeep healthcheck persist
    """
    from app.health import checks
    from app.settings import load

    settings = load(os.environ)
    checks.check(part, settings)
    click.echo(f"{part} is alive")


@click.command(short_help="See it work, with a simulated Replicate.")
@click.option("--stay", is_flag=True, help="Keep running afterwards, until Ctrl-C.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder to keep things in; by default a new one."
)
def demo(*, stay: bool, data: Path | None) -> None:
    """See the main job done end to end, with a simulated Replicate and nothing configured.

    \b
    Examples:
      outkeep demo
      outkeep demo --stay
    """
    from app.demo import story

    sys.exit(story.run(data, stay=stay))


def _signing_secret(_: click.Context, __: click.Parameter, secret: str | None) -> str | None:
    from app.simulator.webhooks import signing_key

    try:
        if secret is not None:
            signing_key(secret)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return secret


def _seconds(_: click.Context, __: click.Parameter, pace: float) -> float:
    if not 0 <= pace <= 3600:  # noqa: PLR2004
        raise click.BadParameter("write a number of seconds from 0 to 3600")
    return pace


@click.command(short_help="Run a local Replicate, for development without paying.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8100, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--secret", callback=_signing_secret, help="Webhook signing secret (whsec_...); by default a new one."
)
@click.option("--token", help="API token that clients must send; by default a new one.")
@click.option(
    "--pace",
    default=3.0,
    show_default=True,
    callback=_seconds,
    help="Seconds that a model takes, an hour at most.",
)
def simulate(host: str, port: int, secret: str | None, token: str | None, pace: float) -> None:
    """Run a local Replicate: predictions, output files and signed webhooks, for development without paying.

    Any model, owner/name, makes a picture, and so does any deployment. What else a model can do show those
    of the owner outkeep: llama (streamed text), caption (text), animation, music, video, images, separate,
    files, nested, mixed, names and inline (other shapes of output), copy (gives its file `image` back),
    community (runs by its version only), nothing, fails, aborts, slow and train. `seconds`, `num_outputs` and
    `seed` in the input say how long it takes, how much it makes and how that looks.

    \b
    Example:
      outkeep simulate --port 8100 --secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
    """
    from app import simulator

    def announce(running: simulator.Simulator) -> None:
        click.echo(f"REPLICATE_BASE_URL={running.url}")
        click.echo(f"REPLICATE_API_TOKEN={running.token}")
        click.echo(f"REPLICATE_WEBHOOK_SECRET={running.secret}")
        click.echo(f"OUTKEEP_OUTPUT_HOSTS={running.url}")
        click.echo("Set these where your program and Outkeep run. Ctrl-C ends it.", err=True)

    def watch(attempt: simulator.Attempt) -> None:
        if attempt.failure is not None:
            then = "given up" if attempt.settled else "tried again"
            where = attempt.url.partition("?")[0]
            what = f"webhook {attempt.event!r} of {attempt.subject} to {where}"
            say(f"{what}: {attempt.failure}; {then}", err=True)

    try:
        simulator.run(host, port, announce=announce, watch=watch, token=token, secret=secret, pace=pace)
    except OSError as error:
        raise refusal(host, port, error, host_option="--host", port_option="--port") from None
