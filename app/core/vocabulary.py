"""The one manifest of what Outkeep says to machines: events of logs, and metrics.

A name here is stable, whatever becomes of the words. Tests prove that no module logs a sentence that is not
listed, that none is listed in vain, and that no metric is counted under another name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from app.core.lifecycle import Repair
from app.core.names import QUARANTINE, Kind
from app.core.reconciling import SEEN_AGAIN, Found

EVENTS: Final[Mapping[str, str]] = {
    # outkeep up
    "starting": "up_starting",
    "%s %s%s": "part_changed",
    # receiver
    "receiving on %s": "receiver_started",
    "delivery %s": "delivery_received",
    "delivery refused": "delivery_refused",
    "an event of Cog is larger than OUTKEEP_MAX_BODY: it is lost, Cog will give up": "delivery_lost",
    "delivery not acknowledged; it must be sent again": "delivery_not_acknowledged",
    "a delivery cannot be used; it is kept aside": "delivery_quarantined",
    "parameters of a webhook URL are too long and left out": "query_cut",
    "whether a large body is still needed could not be told; the sweep will": "claim_unsettled",
    "deliveries are not sent to Redis until it answers": "redis_lost",
    "Redis answers again": "redis_found",
    "a large delivery waits in the spool until the storage takes it": "delivery_waits_for_storage",
    "a large delivery waits on in the spool": "delivery_waits_on",
    "a delivery of Cog waits in the spool: %s": "delivery_waits_for_quarantine",
    "progress is dropped while Redis is away": "progress_dropped",
    # stored files
    "a stored file could not be served; it is asked for again": "file_not_served",
    "the storage failed while a file was served; its reader has to ask again": "file_broken_off",
    # spool
    "deliveries from the spool are accepted": "spool_drained",
    "deliveries from the spool are accepted and cannot be removed from it": "spool_not_removed",
    "the spool waits for Redis": "spool_waiting",
    "the spool cannot be read; it waits on": "spool_unreadable",
    "a delivery in the spool cannot be read; it waits on": "spool_unreadable",
    "a delivery in the spool is damaged and cannot be used; it is set aside": "spool_damaged",
    "a delivery in the spool cannot be used; it is set aside": "spool_damaged",
    # worker processes
    "worker started": "worker_started",
    "the worker cannot go on: %s": "worker_failed",
    "waiting for Redis: %s": "redis_awaited",
    "Redis answers": "redis_found",
    "Redis does not serve, no jobs are taken until it does: %s": "redis_lost",
    "Redis is back after %.0f s": "redis_found",
    "no heartbeats, running jobs may be started again elsewhere: %s": "heartbeats_missing",
    "maintenance failed: jobs of dead workers wait until the cause is gone": "maintenance_failed",
    "this worker could not sign off, its registration expires by itself: %s": "worker_not_signed_off",
    "a thread of a job that was cut off does not end: leaving it behind": "thread_left_behind",
    "%d running jobs are cut off; another worker starts them again": "jobs_cut_off",
    "a job blocks the loop, so that all other jobs wait; it is here:\n%s": "loop_blocked",
    "the loop was blocked for %.1f s": "loop_freed",
    "scheduled jobs wait, tried again: %s": "scheduler_delayed",
    "the scheduler's locks were not released and stand for a minute: %s": "scheduler_locks_left",
    # jobs as RQ keeps them
    "job %s has ended for good: %s": "job_ended",
    "job %s is refused and stands with the failed jobs: %s": "job_refused",
    "job %s was not begun, or its end not saved, it runs again: %s": "job_not_saved",
    "job %s was stopped on request": "job_stopped",
    "job %s has met a Redis that does not serve: %s": "job_without_redis",
    "a command to this worker cannot be carried out": "command_failed",
    "job %s was given up while it ran; its outcome does not count": "job_given_up",
    "the end of job %s was not saved, tried again: %s": "job_end_not_saved",
    "a run ended without its outcome, it runs again: %s": "job_end_not_saved",
    "job %s was taken by a worker that died before it began: it goes back": "job_returned",
    "job %.100r cannot be read and was not run: %s": "job_unreadable",
    "an entry of %s is no job id and was dropped": "job_id_unreadable",
    # keeping outputs
    "stored": "prediction_stored",
    "a body that is stored could not be removed from where it waited; the sweep will": "claim_left",
    "given up until it is replayed: %s": "prediction_given_up",
    "trying again in %.0f s: %s": "job_put_off",
    "an output is lost: %s": "output_lost",
    "an output is not fetched, again in %.0f s: %s": "output_refused",
    "outputs that were refused are kept after all; `outkeep replay` tells handlers of them": "outputs_mended",
    "an output is tried again in %.0f s: %s": "output_put_off",
    "an answer is odd, and clear all the same": "answer_odd",
    "an input is not kept: %s": "input_lost",
    "removed meanwhile: nothing is kept": "prediction_removed",
    # telling handlers
    "handler told": "handler_told",
    "a handler answers oddly, and its status counts": "handler_answer_odd",
    "handler not told, again in %.0f s: %s": "handler_put_off",
    "handler not told; the delivery is a dead letter: %s": "handler_dead_letter",
    "the handlers file of this process has no such handler; another one may, for %.0f min": "handler_unknown",
    "event handed on to a job": "event_handed_on",
    "a job of a handler has finished": "handler_job_finished",
    "a job of a handler failed, again in %.0f s: %s": "handler_job_run_failed",
    "a job of a handler failed for the last time: %s": "handler_job_run_failed",
    "a job of a handler has failed for good, and waits for a replay: %s": "handler_job_failed",
    "the end of job %s is told by the sweep: %s": "handler_job_end_delayed",
    "a function that this worker does not know is left to another one, for %.0f min": "handler_job_unknown",
    "a run goes on %.0f s after its function has ended": "handler_job_overrun",
    "follow-up created": "follow_up_created",
    "a follow-up that an earlier run had created is found": "follow_up_found",
    "handler told meanwhile": "handler_told_meanwhile",
    "the handler answered 410 and is switched off until `outkeep handlers enable %s`": "handler_off",
    "wrong admin tokens: this address has to wait for a minute": "tokens_refused",
    # the catalog
    "the catalog waits, lists show what it knows: %s": "catalog_waits",
    "the catalog is built from the storage": "catalog_building",
    "the catalog is built": "catalog_built",
    # the sweep
    "repaired: %s": "mended",
    "the sweep is put off: %s": "sweep_delayed",
    "removed, since it is older than OUTKEEP_RETENTION": "prediction_retired",
    "removed what is older than OUTKEEP_RETENTION": "retention_removed",
    "it is not removed, although it is old: %s": "retention_kept",
    # reconciliation
    "taken in from the API, since no webhook told of it": "prediction_found",
    "what the API says of a prediction cannot be used: %s": "prediction_unreadable",
    "%s is put off: %s": "reconcile_delayed",
    "%s goes on": "reconcile_resumed",
    "reconciled": "reconciled",
    # the webhook secret
    "the webhook secret was fetched": "secret_fetched",
    "the webhook secret cannot be fetched, deliveries wait for it: %s": "secret_missing",
    "the webhook secret cannot be fetched again: %s": "secret_outdated",
    # any process
    "the clock of this host: %s": "clock_skew",
    "this process may open %d files only, and so takes %d connections at a time; raise the hard limit "
    "(`ulimit -Hn`)": "open_files_few",
    "this process cannot go on: %s": "storage_differs",
    "Redis has come back without data that it held; rebuilding it from the storage": "redis_data_lost",
    "rebuilt from the storage": "redis_rebuilt",
    "Redis has lost its data again while it was rebuilt; the next sweep begins anew": "redis_lost_again",
    "told handlers of what other processes have stored": "handlers_caught_up",
    "rebuilding is put off: %s": "rebuild_delayed",
    "%s could not be read for the rebuild: %s": "manifest_unreadable",
    "counts wait for Redis: %s": "counts_delayed",
    "counts wait in memory alone: %s": "counts_delayed",
    "counts that were left behind stay there: %s": "counts_delayed",
    "the process crashed": "process_crashed",
}
"""What a module gives to the logger, before anything is filled in → the name of the event."""

UNLISTED: Final = "unlisted"
"""The event of a line of ours that is missing above; a test keeps it from happening."""

LIBRARY: Final = "library"
"""The event of what a library says."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that only grows. `name` ends in `_total`; `labels` are in the order of its values."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()
    """Values of the labels that are told from the start, as 0: a rate needs a first sample."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often a value fell into which range; `buckets` are upper bounds, without the infinite one.

    The sum is counted in whole parts, of which `parts` are 1.
    """

    name: str
    help: str
    buckets: tuple[float, ...]
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Gauge:
    """What is measured when it is asked for."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


RECEIVED: Final = Counter(
    "outkeep_deliveries_total",
    "Deliveries acknowledged, by outcome.",
    ("outcome",),
    (("accepted",), ("duplicate",), ("progress",), ("stale",), ("spooled",), ("quarantined",)),
)
REFUSED: Final = Counter(
    "outkeep_refusals_total",
    "Deliveries not acknowledged, by reason.",
    ("reason",),
    (("signature_mismatch",), ("timestamp_out_of_range",), ("busy",), ("redis_unavailable",)),
)
STORED: Final = Counter(
    "outkeep_predictions_stored_total",
    "Predictions and trainings that are kept; not those of which every output was lost.",
    ("kind",),
    tuple((kind,) for kind in Kind),
)
FILES: Final = Counter("outkeep_files_stored_total", "Files stored, inputs included.")
BYTES: Final = Counter("outkeep_bytes_stored_total", "Bytes of files stored, inputs included.")
LOST: Final = Counter(
    "outkeep_files_lost_total",
    "Output files that could not be kept, by code.",
    ("code",),
    (("not_found",), ("host_refused",), ("deadline",), ("too_large",)),
)
RETRIES: Final = Counter(
    "outkeep_retries_total", "Attempts put off, by what was to be done and code.", ("work", "code")
)
NOTIFIED: Final = Counter(
    "outkeep_notifications_total", "Attempts to tell a handler, by how they ended.", ("handler", "outcome")
)
ATTEMPTED: Final = ("delivered", "handed_on", "retried", "dead", "off")
"""How an attempt may end: known for each handler of the handlers file."""
REMOVED: Final = Counter(
    "outkeep_removed_total",
    "Predictions, trainings and quarantined deliveries removed, by what they were and why.",
    ("kind", "cause"),
    (*((kind, cause) for kind in Kind for cause in ("asked", "retention")), (QUARANTINE, "retention")),
)
REPAIRS: Final = Counter(
    "outkeep_repairs_total",
    "What the sweep has repaired, by repair.",
    ("repair",),
    tuple((repair,) for repair in Repair),
)
FOUND: Final = Counter(
    "outkeep_reconciled_total",
    "What reconciliation found that was not here, by what it was.",
    ("found",),
    tuple((found,) for found in Found if found not in SEEN_AGAIN),
)
HOUR_LEFT: Final = Histogram(
    "outkeep_hour_left_seconds",
    "Seconds that were left until Replicate deletes the files when a prediction was stored; 0: too late.",
    (0, 60, 300, 600, 1200, 1800, 2400, 3000, 3300, 3480, 3540, 3570, 3590),
)
_WAITS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1200, 3600)
DELAYED: Final = Histogram(
    "outkeep_webhook_delay_seconds",
    "Seconds from the end of a prediction to its webhook; not where that time is absurd.",
    _WAITS,
    parts=1000,
)
COMPLETED_TO_STORED: Final = Histogram(
    "outkeep_completed_to_stored_seconds",
    "Seconds from the end of a prediction, or its receipt if that time is absurd, to its manifest.",
    _WAITS,
    parts=1000,
)
STORED_TO_NOTIFIED: Final = Histogram(
    "outkeep_stored_to_notified_seconds",
    "Seconds from the manifest until a handler took the event, replays left out.",
    (*_WAITS, 18_000, 86_400, 259_200),
    parts=1000,
)

BUILD: Final = Gauge("outkeep_build_info", "1, with the version that answers.", ("version", "python"))
REDIS_UP: Final = Gauge("outkeep_redis_up", "Whether Redis answered; 0: counts may be behind.")
QUEUED: Final = Gauge("outkeep_queue_jobs", "Jobs of a queue, by where they stand.", ("queue", "state"))
OLDEST: Final = Gauge(
    "outkeep_queue_oldest_seconds", "Age of the oldest job that waits in a queue; 0: none waits.", ("queue",)
)
WORKERS: Final = Gauge("outkeep_workers", "Workers registered for a queue.", ("queue",))
RECORDS: Final = Gauge("outkeep_records", "Predictions and trainings in the live view.")
DIFFERING: Final = Gauge(
    "outkeep_processes_differing", "Processes that differ from this one, by what in.", ("what",)
)
SPOOLED: Final = Gauge("outkeep_spool_deliveries", "Deliveries that wait on the disk of this receiver.")
SPOOL_OLDEST: Final = Gauge("outkeep_spool_oldest_seconds", "Age of the oldest delivery in the spool.")

COUNTERS: Final = (RECEIVED, REFUSED, STORED, FILES, BYTES, LOST, RETRIES, NOTIFIED, REMOVED, REPAIRS, FOUND)
HISTOGRAMS: Final = (HOUR_LEFT, DELAYED, COMPLETED_TO_STORED, STORED_TO_NOTIFIED)
SKEW: Final = Gauge(
    "outkeep_clock_skew_seconds",
    "How far the clock of a host is ahead of that of Redis, of hosts that are off.",
    ("host",),
)

GAUGES: Final = (BUILD, REDIS_UP, QUEUED, OLDEST, WORKERS, RECORDS, DIFFERING, SPOOLED, SPOOL_OLDEST, SKEW)
