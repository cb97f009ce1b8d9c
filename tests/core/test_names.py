import importlib
import inspect
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core import names
from app.core.names import ID, Kind

IDS = st.from_regex(ID, fullmatch=True)
KINDS = st.sampled_from(Kind)


@pytest.mark.parametrize("job", [names.PERSIST_JOB, names.NOTIFY_JOB])
def test_each_job_name_resolves_to_a_coroutine_function(job: str) -> None:
    module, _, name = job.rpartition(".")
    function: object = getattr(importlib.import_module(module), name)
    assert inspect.iscoroutinefunction(function)
    assert inspect.getmodule(function) is importlib.import_module(module)


def test_no_job_name_is_forgotten_here() -> None:
    spelled = {value for name, value in vars(names).items() if name.endswith("_JOB")}
    assert spelled == {"workers.jobs.persist", "workers.jobs.notify"}


def test_the_strings_that_outlive_a_process_stay() -> None:
    kind, prediction = Kind.PREDICTION, "ype2b3w02xrme0cqadzrms82nm"
    assert [names.PERSIST_QUEUE, names.NOTIFY_QUEUE, names.HANDLE_QUEUE] == ["persist", "notify", "handle"]
    assert names.persist_job_id(kind, prediction) == f"persist-prediction-{prediction}"
    assert names.notify_job_id("gallery", kind, prediction) == f"notify-gallery-prediction-{prediction}"
    assert names.notification_id("gallery", kind, prediction) == "msg_7e7494295338e97f45a4575a4e97d2af"
    assert names.record_key(kind, prediction) == f"outkeep:record:prediction:{prediction}"
    assert names.record_member(kind, prediction) == f"prediction:{prediction}"
    assert names.object_name(kind, prediction, "a.png") == f"predictions/{prediction}/a.png"
    assert names.manifest_name(kind, prediction) == f"predictions/{prediction}/prediction.json"
    assert names.manifest_name(Kind.TRAINING, "t") == "trainings/t/prediction.json"
    assert names.file_name(names.output_stem(0), "png") == "output-0.png"
    assert names.file_name(names.input_stem("image", 0), "png") == "input-image-0.png"
    assert names.outcome_name("gallery") == "told-gallery.json"
    assert names.quarantine_name("2025-06-09", "ab12") == "quarantine/2025-06-09/ab12.json"
    assert names.quarantine_name("2025-06-09", "ab12", of_cog=True) == "quarantine/2025-06-09/cog-ab12.json"
    assert names.is_quarantine_of_cog("quarantine/2025-06-09/cog-ab12.bin")
    assert not names.is_quarantine_of_cog("quarantine/2025-06-09/ab12.json")


@pytest.mark.parametrize("good", ["a", "A-z_9", "-", "_", "x" * 64, "ype2b3w02xrme0cqadzrms82nm"])
def test_an_id_has_letters_digits_dashes_and_underscores(good: str) -> None:
    assert ID.fullmatch(good)


@pytest.mark.parametrize(
    "bad", ["", "x" * 65, "a/b", "..", "a.b", "a:b", "a b", "a\n", "\na", "a\0", "é", "\u0661", "\u212a"]
)
def test_nothing_else_is_an_id(bad: str) -> None:
    assert not ID.fullmatch(bad)


Maker = Callable[[Kind, str], str]


@settings(deadline=None)
@given(st.tuples(KINDS, IDS), st.tuples(KINDS, IDS))
def test_two_predictions_share_no_name(one: tuple[Kind, str], other: tuple[Kind, str]) -> None:
    makers: list[Maker] = [
        names.persist_job_id,
        names.record_key,
        names.record_member,
        names.manifest_name,
    ]
    for maker in makers:
        assert (maker(*one) == maker(*other)) == (one == other)


@settings(deadline=None)
@given(st.tuples(IDS, KINDS, IDS), st.tuples(IDS, KINDS, IDS))
def test_two_notifications_share_no_webhook_id(
    one: tuple[str, Kind, str], other: tuple[str, Kind, str]
) -> None:
    assert (names.notification_id(*one) == names.notification_id(*other)) == (one == other)
    assert re.fullmatch(r"msg_[0-9a-f]{32}", names.notification_id(*one))


HANDLERS = IDS | st.lists(st.sampled_from(["a", "prediction", "training", ""]), min_size=1).map("-".join)


PIECES = ["a", "r1", "-r1", "prediction", "-training-", "_", "_u", "_d", "_r", "-"]
ODD_IDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)
JOBS = st.tuples(HANDLERS, KINDS, IDS | ODD_IDS, st.integers(0, 3))


@settings(deadline=None)
@given(JOBS, JOBS)
def test_two_notifications_share_no_job_not_even_a_replay(
    one: tuple[str, Kind, str, int], other: tuple[str, Kind, str, int]
) -> None:
    def job_id(handler: str, kind: Kind, prediction: str, number: int) -> str:
        place = (handler, kind, prediction)
        return names.replay_job_id(*place, number) if number else names.notify_job_id(*place)

    assert (job_id(*one) == job_id(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b-prediction-c", 0), ("a-prediction-b", "c", 0)),
        (("a", "b-r1", 0), ("a", "b", 1)),
        (("a", "prediction", 1), ("a-prediction", "r1", 0)),
        (("a", "r1", 0), ("a", "_r1", 0)),
        (("a", "b_dc", 0), ("a", "b-c", 0)),
    ],
)
def test_ids_that_look_like_parts_of_a_job_are_told_apart(
    one: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    def job_id(handler: str, prediction: str, number: int) -> str:
        place = (handler, Kind.PREDICTION, prediction)
        return names.replay_job_id(*place, number) if number else names.notify_job_id(*place)

    assert job_id(*one) != job_id(*other)


@pytest.mark.parametrize("identity", ["ype2b3w02xrme0cqadzrms82nm", "order-42", "a_b-c", "r1x", "b-r1c"])
def test_an_ordinary_id_stands_in_the_ids_of_jobs_as_it_is(identity: str) -> None:
    assert names.persist_job_id(Kind.PREDICTION, identity) == f"persist-prediction-{identity}"
    assert names.notify_job_id("gallery", Kind.TRAINING, identity) == f"notify-gallery-training-{identity}"
    replay = names.replay_job_id("gallery", Kind.TRAINING, identity, 2)
    assert replay == f"notify-gallery-training-{identity}-r2"


@settings(deadline=None)
@given(HANDLERS.filter(ID.fullmatch), KINDS, IDS)
def test_rq_takes_every_job_id_and_no_two_kinds_of_jobs_meet(
    handler: str, kind: Kind, prediction: str
) -> None:
    ids = [names.persist_job_id(kind, prediction), names.notify_job_id(handler, kind, prediction)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", job_id) for job_id in ids)
    assert ids[0] != ids[1]


@settings(deadline=None)
@given(KINDS, IDS)
def test_a_member_of_the_index_leads_back_to_its_prediction(kind: Kind, prediction: str) -> None:
    assert names.split_member(names.record_member(kind, prediction)) == (kind, prediction)


@settings(deadline=None)
@given(KINDS, IDS, IDS, st.integers(0, 1000))
def test_objects_of_a_prediction_lie_in_its_folder_under_different_names(
    kind: Kind, prediction: str, handler: str, index: int
) -> None:
    inside = [
        names.MANIFEST_NAME,
        names.TEXT_NAME,
        names.file_name(names.output_stem(index), "txt"),
        names.file_name(names.output_stem(index + 1), "txt"),
        names.file_name(names.input_stem(handler, index), "txt"),
        names.file_name(names.input_stem(handler, index + 1), "txt"),
        names.outcome_name(handler),
    ]
    objects = [names.object_name(kind, prediction, name) for name in inside]
    assert len(set(objects)) == len(objects)
    assert all(name.split("/")[:2] == [f"{kind.value}s", prediction] for name in objects)
    assert all(name.count("/") == 2 for name in objects)


@given(kind=KINDS, prediction=IDS | ODD_IDS, handler=IDS, number=st.integers(1, 10**6))
def test_the_ids_of_our_jobs_say_what_they_are_about(
    kind: Kind, prediction: str, handler: str, number: int
) -> None:
    place = (handler, kind, prediction)
    assert names.split_notify_job_id(names.notify_job_id(*place)) == place
    assert names.split_notify_job_id(names.replay_job_id(*place, number)) == place
    assert names.split_persist_job_id(names.persist_job_id(kind, prediction)) == (kind, prediction)
    jobs = (names.persist_job_id(kind, prediction), names.replay_job_id(*place, number))
    assert {names.place_of_job(job_id) for job_id in jobs} == {(kind, prediction)}


@pytest.mark.parametrize(
    "other", ["", "planted", "notify-x", "notify-gallery-cat-abc", "persist-prediction-"]
)
def test_the_ids_of_other_jobs_say_nothing(other: str) -> None:
    assert names.split_notify_job_id(other) is None
    assert names.split_persist_job_id(other) is None


def test_the_state_of_a_handler_and_a_replay_keep_their_names() -> None:
    assert names.handler_key("gallery") == "outkeep:handler:gallery"
    assert names.replay_job_id("gallery", Kind.TRAINING, "abc", 2) == "notify-gallery-training-abc-r2"
