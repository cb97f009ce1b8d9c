"""Commands that make addresses and secrets: secret, url, link, open."""

import asyncio
import json
import os
import sys
from dataclasses import replace
from http import HTTPStatus
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import click

from app import deployment
from app.cli.opening import open_storage
from app.cli.terminal import say
from app.core.context import context_keys, webhook_url
from app.core.errors import ConfigurationError, Permanent
from app.core.links import link_keys, signed_url
from app.core.names import ID, MANIFEST_NAME, Kind
from app.core.request import parse_context
from app.core.signature import generate_secret
from app.receive.keyring import fetch_secret
from app.settings import load
from app.web.signing import SIGN_IN, sign_in_url

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
    keys = context_keys(deployment.signing_keys(settings))
    if settings.public_url is None:
        say(f"outkeep: OUTKEEP_PUBLIC_URL is not set; Replicate cannot reach {settings.own_url}", err=True)
    try:
        made = webhook_url(settings.base_url, Kind.TRAINING if training else Kind.PREDICTION, context, keys)
    except Permanent as error:
        raise ConfigurationError([f"--context: {error.message}"]) from None
    click.echo(json.dumps({"url": made}) if as_json else made)


@click.command(short_help="Print fresh links to the stored files of a prediction.")
@click.argument("prediction_id", metavar="ID")
@click.argument("name", required=False)
@click.option(
    "--kind", type=click.Choice([kind.value for kind in Kind]), help="In case a training shares the id."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def link(prediction_id: str, name: str | None, *, kind: str | None, as_json: bool) -> None:
    """Print a fresh signed link to each stored file of ID, or to the one called NAME.

    Whoever has a link can read that file, for eight days.

    \b
    Examples:
      outkeep link ype2b3w02xrme0cqadzrms82nm
      outkeep link ype2b3w02xrme0cqadzrms82nm output-0.png
    """
    if not ID.fullmatch(prediction_id):
        raise click.BadParameter("an id has 1 to 64 letters, digits, '_' or '-'")
    settings = load(os.environ)
    storage, clock = open_storage(settings)
    found = [storage.read_manifest(one, prediction_id) for one in ([Kind(kind)] if kind else Kind)]
    manifests = [manifest for manifest in found if manifest is not None]
    if not manifests:
        raise Permanent("unknown", f"nothing is stored of {prediction_id}")
    if len(manifests) > 1:
        raise click.UsageError("a prediction and a training have this id; add --kind")
    names = [file.name for file in manifests[0].kept if file.name] + ([MANIFEST_NAME] if name else [])
    if name is not None and name not in names:
        there = ", ".join(names[:-1]) or "none"
        raise Permanent("unknown", f"{prediction_id} has no stored file {name}; there are: {there}")
    keys, now = link_keys(deployment.signing_keys(settings)), clock.time()
    if settings.public_url is None:
        say(f"outkeep: OUTKEEP_PUBLIC_URL is not set; only this host reaches {settings.own_url}", err=True)
    for one in [name] if name else names:
        url = signed_url(settings.base_url, manifests[0].prediction.kind, prediction_id, one, keys, now=now)
        say(json.dumps({"name": one, "url": url}) if as_json else url)


@click.command("open", short_help="Open the dashboard, by a link that signs in once.")
@click.option("--print", "only_print", is_flag=True, help="Print the link, and open no browser.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object; opens no browser.")
def open_dashboard(*, only_print: bool, as_json: bool) -> None:
    """Print a link that signs in to the dashboard of this host, once and within an hour, and open it.

    \b
    Examples:
      outkeep open
      ssh example.com outkeep open --print
    """
    settings = load(os.environ)
    keys = deployment.signing_keys(settings)
    # Browsers go to no address that stands for every interface.
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    url = replace(settings, host=everywhere.get(settings.host, settings.host)).own_url
    _require_dashboard(url)
    _, clock = open_storage(settings)
    link = sign_in_url(url, keys, now=clock.time())
    click.echo(json.dumps({"url": link}) if as_json else link)
    if not (only_print or as_json) and sys.stdout.isatty():
        click.launch(link)


def _require_dashboard(url: str) -> None:
    """Raise `Permanent` unless a dashboard answers; proxies of the environment do not lead to this host."""
    opener = build_opener(ProxyHandler({}))
    try:
        opener.open(f"{url}{SIGN_IN}", timeout=TIMEOUT).close()
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.NOT_FOUND:
            cure = "set OUTKEEP_ADMIN_TOKEN where it runs, or start `outkeep up` on a loopback address"
            raise Permanent("dashboard_off", f"the dashboard of {url} is off; {cure}") from None
        raise Permanent("dashboard_off", f"{url} answered {error.code}; is this Outkeep?") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Permanent("dashboard_off", f"{url} does not answer ({reason}); start `outkeep up`") from None
