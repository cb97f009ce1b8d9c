"""Large bodies that wait in storage for nobody: a process died before, or after, a record led there."""

from collections.abc import Iterator

from app.accept.records import Records
from app.core.lifecycle import CLAIM_AFTER
from app.core.names import CLAIMS, manifest_name, split_claim_name
from app.storage.store import Storage


def stray_claims(storage: Storage, records: Records, *, held_for: float, now: float) -> Iterator[str]:
    """Their names. `now` is the Unix time. Raises errors of the storage and of redis.

    Once the manifest is written, or the prediction removed, a body is needed no more, whoever still brings
    it. Without a manifest it stays while a record points to it, and for `held_for` seconds, so that no
    delivery of the same bytes can meet its removal.
    """
    for name, changed_at in storage.listed(CLAIMS):
        age = now - changed_at.timestamp()
        if age >= CLAIM_AFTER and _is_stray(storage, records, name, held_long=age >= held_for):
            yield name


def _is_stray(storage: Storage, records: Records, name: str, *, held_long: bool) -> bool:
    place = split_claim_name(name)
    if place is None:
        return False  # not ours
    kind, prediction_id, _ = place
    if storage.head(manifest_name(kind, prediction_id)) is not None:
        return True
    if records.is_removed(kind, prediction_id):
        return True
    record = records.get(kind, prediction_id)
    return held_long and (record is None or record.body_at != name)
