"""Links to stored files that carry their own permission, for events."""

from collections.abc import Callable
from datetime import datetime

from app.core import event as events
from app.core.links import LinkKeys, signed_url
from app.core.manifest import Manifest

Links = Callable[[Manifest], events.Link]
"""From a manifest to what makes links to its files."""


def signed_links(keys: LinkKeys, base_url: str, clock: Callable[[], datetime]) -> Links:
    """Links to our own server, good from now on."""

    def of(manifest: Manifest) -> events.Link:
        prediction, now = manifest.prediction, clock().timestamp()
        return lambda name: signed_url(base_url, prediction.kind, prediction.id, name, keys, now=now)

    return of
