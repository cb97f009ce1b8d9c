"""Commands around webhooks of Replicate: secret, url."""

import asyncio
import json
import os

import click

from app import deployment
from app.cli.terminal import say
from app.core.context import context_keys, webhook_url
from app.core.errors import ConfigurationError, Permanent
from app.core.keys import generate_secret
from app.core.names import Kind
from app.core.request import parse_context
from app.keyring import fetch_secret
from app.settings import load

TIMEOUT = 15.0


@click.command(short_help="Print the secret that Replicate signs webhooks with.")
@click.option("--new", is_flag=True, help="Make a new one instead, for a handler or a sender of your own.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
def secret(*, new: bool, as_json: bool) -> None:
    """Print the secret that Replicate signs the webhooks of your account with.

    It is fetched with REPLICATE_API_TOKEN, and stored nowhere.

    \b
    Examples:
      outkeep secret
      outkeep secret --new
    """
    if new:
        found = generate_secret(os.urandom(32))
    else:
        settings = load(os.environ)
        if settings.api_token is None:
            raise ConfigurationError(
                ["REPLICATE_API_TOKEN: not set, and only with it the secret can be fetched; see also --new"]
            )
        found = asyncio.run(fetch_secret(settings, timeout=TIMEOUT))
    click.echo(json.dumps({"secret": found}) if as_json else found)


@click.command(short_help="Print the address to give to Replicate as `webhook`.")
@click.option(
    "--context", "pairs", multiple=True, metavar="KEY=VALUE", help="What comes back as `context`; repeatable."
)
@click.option("--training", is_flag=True, help="For a training.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
def url(pairs: tuple[str, ...], *, training: bool, as_json: bool) -> None:
    """Print the address to give to Replicate as `webhook`, with a context that we sign.

    Whoever sees the address can read the context, and nobody can change it.

    \b
    Examples:
      outkeep url
      outkeep url --context order=42 --context customer=7
    """
    try:
        context = parse_context(pairs)
    except Permanent as error:
        raise ConfigurationError([f"--context: {error.message}"]) from None
    settings = load(os.environ)
    if settings.redis_url and settings.secret_keys is None:
        raise ConfigurationError(["OUTKEEP_SECRET_KEY: needed together with REDIS_URL, to sign the context"])
    keys = context_keys(settings.secret_keys or deployment.own_keys(settings.data))
    if settings.public_url is None:
        say(f"outkeep: OUTKEEP_PUBLIC_URL is not set; Replicate cannot reach {settings.own_url}", err=True)
    try:
        made = webhook_url(settings.base_url, Kind.TRAINING if training else Kind.PREDICTION, context, keys)
    except Permanent as error:
        raise ConfigurationError([f"--context: {error.message}"]) from None
    click.echo(json.dumps({"url": made}) if as_json else made)
