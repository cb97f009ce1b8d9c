"""The worker leans on RQ's inner order: what it overrides must still be there, in the form it knows."""

import inspect
from typing import Any

import pytest
import rq
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.queue import Queue
from rq.scheduler import RQScheduler
from rq.worker.base import BaseWorker

from workers.engine.async_worker import AsyncWorker
from workers.engine.handle import HandleWorker
from workers.engine.job import AsyncJob
from workers.engine.job_queue import JobQueue, TakenJobs
from workers.engine.patient_worker import PatientWorker

SIGNATURES: dict[type[Any], dict[str, list[str] | None]] = {
    BaseWorker: {
        "check_for_suspension": ["self", "burst"],
        "cleanup_execution": ["self", "job", "pipeline", "execution"],
        "connection_timeout": None,
        "death_penalty_class": None,
        "dequeue_job_and_maintain_ttl": ["self", "timeout", "max_idle_time"],
        "dequeue_timeout": None,
        "execute_job": ["self", "job", "queue"],
        "get_heartbeat_ttl": ["self", "job", "working_time"],
        "handle_exception": ["self", "job", "exc_info"],
        "executions_key": None,
        "handle_job_failure": ["self", "job", "queue", "started_job_registry", "exc_string", "execution"],
        "handle_job_retry": ["self", "job", "queue", "retry", "started_job_registry", "execution"],
        "handle_job_success": ["self", "job", "queue", "started_job_registry", "execution"],
        "handle_payload": ["self", "message"],
        "handle_work_horse_killed": ["self", "job", "retpid", "ret_val", "rusage"],
        "heartbeat": ["self", "timeout", "pipeline"],
        "job_class": None,
        "log_result_lifespan": None,
        "maintain_heartbeats": ["self", "job", "execution"],
        "perform_job": ["self", "job", "queue", "execution"],
        "procline": ["self", "message"],
        "queue_class": None,
        "main_work_horse": ["self", "job", "queue"],
        "pubsub_channel_name": None,
        "register_birth": ["self"],
        "request_force_stop": ["self", "signum", "frame"],
        "request_stop": ["self", "signum", "frame"],
        "request_stop_execution": ["self", "execution_id"],
        "run_maintenance_tasks": ["self"],
        "serialize": ["self"],
        "set_state": ["self", "state", "pipeline"],
        "set_shutdown_requested_date": ["self"],
        "should_run_maintenance_tasks": None,
        "subscribe": ["self"],
        "teardown": ["self"],
        "unsubscribe": ["self"],
        "wait_for_horse": ["self"],
        "work": [
            "self", "burst", "logging_level", "date_format", "log_format", "max_jobs", "max_idle_time",
            "with_scheduler", "dequeue_strategy",
        ],
    },
    Execution: {"heartbeat": ["self", "started_job_registry", "ttl", "pipeline"]},
    Job: {
        "fetch": ["id", "connection", "serializer"],
        "func": None,
        "has_rate_limit": None,
        "heartbeat": ["self", "timestamp", "ttl", "pipeline", "xx"],
        "perform": ["self"],
        "prepare_for_execution": ["self", "worker_name", "pipeline"],
        "restore": ["self", "raw_data"],
        "set_status": ["self", "status", "pipeline"],
    },
    Queue: {
        "acquire_maintenance_lock": ["self"],
        "intermediate_queue": None,
        "intermediate_queue_key": None,
        "lmove": ["connection", "queue_key", "timeout"],
        "push_job_id": ["self", "job_id", "pipeline", "at_front"],
        "registry_cleaning_key": None,
    },
    IntermediateQueue: {
        "cleanup": ["self", "worker", "queue"],
        "set_first_seen": ["self", "job_id"],
        "should_be_cleaned_up": ["self", "job_id"],
    },
    RQScheduler: {
        "acquire_locks": ["self", "auto_start"],
        "enqueue_scheduled_jobs": ["self"],
        "heartbeat": ["self"],
        "register_birth": ["self"],
        "stop": ["self"],
    },
}  # fmt: skip
"""What we override or call; None stands for a property or an attribute."""

OURS = {
    BaseWorker: (PatientWorker, AsyncWorker, HandleWorker),
    Job: (AsyncJob,),
    Queue: (JobQueue,),
    IntermediateQueue: (TakenJobs,),
}


def test_rq_is_the_version_that_this_was_written_for() -> None:
    assert rq.__version__ == "3.0.0"


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [(owner, name, parameters) for owner, names in SIGNATURES.items() for name, parameters in names.items()],
)
def test_rq_still_has_what_we_build_on(owner: type[Any], name: str, parameters: list[str] | None) -> None:
    member = getattr(owner, name)
    if parameters is None:
        assert not inspect.isroutine(member)
    else:
        assert list(inspect.signature(member).parameters) == parameters


@pytest.mark.parametrize("theirs", OURS)
def test_everything_that_we_override_is_on_the_list(theirs: type[Any]) -> None:
    overridden = {
        name
        for ours in OURS[theirs]
        for name in vars(ours)
        if hasattr(theirs, name) and not name.startswith("__")
    }
    assert overridden <= SIGNATURES[theirs].keys()
    assert not any(name.startswith("_") for name in overridden)
