"""Links to stored files that carry their own permission, for events."""

from collections.abc import Callable
from datetime import datetime

from app.core import event as events
from app.core.links import LinkKeys, file_path, sign_path
from app.core.manifest import Manifest

LIFE = 8 * 86400
"""Seconds for which a link in an event is good: seven days are promised."""

Links = Callable[[Manifest], events.Link]
"""From a manifest to what makes links to its files."""


def signed_links(keys: LinkKeys, base_url: str, clock: Callable[[], datetime]) -> Links:
    """Links to our own server, good from now on."""

    def of(manifest: Manifest) -> events.Link:
        expires = int(clock().timestamp()) + LIFE
        prediction = manifest.prediction

        def link(name: str) -> str:
            return base_url + sign_path(file_path(prediction.kind, prediction.id, name), expires, keys)

        return link

    return of
