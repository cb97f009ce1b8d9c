import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import ConfigurationError, Permanent
from app.core.handlers import Call, FollowUp, Handler, Webhook, interested, job_queues, needs_token, parse
from app.core.names import Kind
from app.core.prediction import TERMINAL, Prediction, from_object
from app.core.request import Model
from app.core.signature import PrivateKey, SharedKey, generate_secret
from app.core.templates import render

CANARY = b"canary in a mine, 24 bytes"
SECRET = generate_secret(CANARY)
OTHER = generate_secret(b"another secret of 24 bytes or more")
SECRETS = {"env:GALLERY_SECRET": SECRET, "file:/run/two": f"{OTHER} {SECRET}", "env:BAD": SECRET[:-3]}

GALLERY = f"""
[[handler]]
name = "gallery"
url = "https://example.com/hooks/outputs"
secret = "{SECRET}"
"""


def read_secret(reference: str) -> str:
    """What a process offers: a table in place of its environment and its files."""
    if reference == "env:MISSING":
        raise Permanent("bad_secret", "the environment variable MISSING is not set")
    return SECRETS.get(reference, reference)


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, read_secret)
    shown = "\n".join([*caught.value.problems, caught.value.message, repr(caught.value)])
    assert SECRET.removeprefix("whsec_")[:12] not in shown
    assert "canary" not in shown
    assert all(problem.isprintable() and problem for problem in caught.value.problems)
    return caught.value.problems


def gallery(*lines: str, without: str = "") -> str:
    """A handlers file with one handler: its lines, save those of the key `without`, and more."""
    kept = [line for line in GALLERY.splitlines() if not (without and line.startswith(without))]
    replaced = {line.partition(" =")[0] for line in lines}
    return "\n".join([line for line in kept if line.partition(" =")[0] not in replaced] + list(lines))


def handler(**filters: object) -> Handler:
    (found,) = parse(
        gallery(*(f"{key} = {json.dumps(value)}" for key, value in filters.items())), read_secret
    )
    return found


def webhook(**filters: object) -> Webhook:
    target = handler(**filters).target
    assert isinstance(target, Webhook)
    return target


def ended(
    status: str = "succeeded", model: str | None = "black-forest-labs/flux-dev", kind: Kind = Kind.PREDICTION
) -> Prediction:
    return from_object({"id": "a", "status": status, "model": model}, kind)


def test_a_file_without_handlers_is_fine() -> None:
    assert parse("", read_secret) == ()
    assert parse("# nothing yet\n", read_secret) == ()
    assert parse("handler = []", read_secret) == ()


def test_a_handler_is_read_whole() -> None:
    (found,) = parse(
        gallery('on = ["succeeded", "failed"]', 'model = "owner/*"', 'kind = "training"'), read_secret
    )
    assert found == Handler(
        name="gallery",
        target=Webhook("https://example.com/hooks/outputs", (SharedKey(CANARY),)),
        on=frozenset({"succeeded", "failed"}),
        model="owner/*",
        kind=Kind.TRAINING,
    )


@pytest.mark.parametrize(
    "host", ["localhost", "my_service:8000", "10.0.0.7", "[::1]:80", "example.com.", "bücher.example"]
)
def test_a_handler_may_be_on_ones_own_network(host: str) -> None:
    assert webhook(url=f"http://{host}/hook").url == f"http://{host}/hook"


def test_the_order_of_the_file_is_kept() -> None:
    text = "".join(GALLERY.replace("gallery", name) for name in ("c", "a", "b"))
    assert [found.name for found in parse(text, read_secret)] == ["c", "a", "b"]


def test_secrets_come_from_where_the_file_says_and_all_of_a_list_sign() -> None:
    private = "whsk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    assert webhook(secret="env:GALLERY_SECRET").keys == (SharedKey(CANARY),)
    assert len(webhook(secret="file:/run/two").keys) == 2
    assert len(webhook(secret=[SECRET, "file:/run/two"]).keys) == 3
    (key,) = webhook(secret=private).keys
    assert isinstance(key, PrivateKey)


def test_a_handler_does_not_show_its_keys() -> None:
    assert "canary" not in repr(handler())


def table(*lines: str, name: str = "next") -> str:
    return "\n".join(["[[handler]]", f'name = "{name}"', *lines])


def test_a_job_is_read_whole_and_has_defaults() -> None:
    whole = table('job = "my.tasks.thumb"', 'queue = "handle"', 'timeout = "10m"', 'memory = "512MiB"')
    (found,) = parse(whole, read_secret)
    assert found.target == Call("my.tasks.thumb", "handle", 600, 512 << 20)
    (found,) = parse(table('job = "my.tasks.thumb"', 'queue = "thumbs"'), read_secret)
    assert found.target == Call("my.tasks.thumb", "thumbs")
    (found,) = parse(table('job = "my.tasks.thumb"', "timeout = 30"), read_secret)
    assert found.target == Call("my.tasks.thumb", "handle", 30, 2 << 30)


@pytest.mark.parametrize(
    ("line", "after"), [('cancel_after = "1h30m"', "1h30m"), ("cancel_after = 600", "10m"), ("", None)]
)
def test_a_follow_up_may_have_a_deadline(line: str, after: str | None) -> None:
    (found,) = parse(table('predict = "a/b"', line), read_secret)
    assert isinstance(found.target, FollowUp)
    assert found.target.cancel_after == after


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("nightmareai/real-esrgan", Model("nightmareai/real-esrgan")),
        ("a/b:" + "0" * 64, Model("a/b", "0" * 64)),
        ("deployments/acme/upscale", Model("acme/upscale", is_deployment=True)),
    ],
)
def test_a_follow_up_is_read_whole(text: str, model: Model) -> None:
    line = 'input = { image = "{files[0].url}", scale = 2, more = [{ a = true }] }'
    (found,) = parse(table(f'predict = "{text}"', line), read_secret)
    assert isinstance(found.target, FollowUp)
    assert found.target.model == model
    assert str(model) == text
    files = [{"url": "https://x/"}]
    given = {"image": "https://x/", "scale": 2, "more": [{"a": True}]}
    assert render(found.target.input, {"files": files}) == given


def test_the_queues_of_jobs_and_the_callers_of_the_api_are_told() -> None:
    text = "\n".join(
        [
            GALLERY,
            table('job = "a.b"', name="one"),
            table('job = "a.c"', 'queue = "thumbs"', name="two"),
            table('predict = "a/b"', name="three"),
        ]
    )
    found = parse(text, read_secret)
    assert job_queues(found) == ("handle", "thumbs")
    assert job_queues(found[:1]) == ()
    assert needs_token(found) == ["three"]
    assert [one.patience for one in found] == [60, 60, 60, 900]


_FUNCTION = "must be the dotted name of a function, such as 'myproject.tasks.make_thumbnail'"
_QUEUE = "must be 1 to 64 letters, digits, '_' or '-', and neither 'persist' nor 'notify'"
_MODEL = "must be 'owner/name', 'owner/name:version' or 'deployments/owner/name'"

_OURS = "'job' names Outkeep's own code; a package named app or workers cannot run here"
_TIMEOUT = "'timeout' must be a duration of a day at most, such as '10m'"
_NOTHING = (
    "'input' 'image': {file} names nothing of an event, which has completed_at, context, created_at, error, "
    "files, id, input, kind, logs, lost, metrics, model, output, query, status, version"
)

KIND_MISTAKES = [
    ((), "one of 'url', 'job' and 'predict' is missing"),
    (('job = "a.b"', 'predict = "a/b"'), "'job' and 'predict' stand together; a handler has one of them"),
    (('job = "a.b"', 'secret = "env:GALLERY_SECRET"'), "'secret' means nothing beside 'job'"),
    (('job = "a.b"', "input = {}"), "'input' means nothing beside 'job'"),
    (
        ('job = "a.b"', 'queue = "own"', 'memory = "1GiB"'),
        "'memory' means nothing on a queue of your own: its workers set their own limits",
    ),
    *(
        (
            ('predict = "a/b"', f"cancel_after = {after}"),
            "'cancel_after' must be a duration of 5s to 24h, such as '10m'",
        )
        for after in ("4", '"25h"', '"soon"', "true", "0", "[]")
    ),
    (('job = "a.b"', 'cancel_after = "10m"'), "'cancel_after' means nothing beside 'job'"),
    (('predict = "a/b"', 'queue = "handle"'), "'queue' means nothing beside 'predict'"),
    *(
        ((f"job = {job}",), f"'job' {_FUNCTION}")
        for job in (
            '""', "7", '"tasks"', '"a.b()"', '"a..b"', '".a.b"', '"a.b."', '"a b.c"', '"a.b\\n"', '"a.1b"'
        )
    ),
    (('job = "app.tasks.x"',), _OURS),
    *(
        (('job = "a.b"', f"queue = {queue}"), f"'queue' {_QUEUE}")
        for queue in ('""', "7", '"persist"', '"notify"', '"a b"', '"a:b"', '"é"')
    ),
    *(
        (('job = "a.b"', f"timeout = {timeout}"), _TIMEOUT)
        for timeout in ('""', "0", '"0s"', '"2d"', '"soon"', "true", "1.5", "[]", "-1")
    ),
    *(
        (('job = "a.b"', f"memory = {memory}"), "'memory' must be a size of 128MiB or more, such as '1GiB'")
        for memory in ('""', "0", '"64MiB"', '"much"', "true", '"1EB"', '"999999999999TiB"', "-1")
    ),
    *(
        ((f"predict = {model}",), f"'predict' {_MODEL}")
        for model in (
            '""', "7", '"a"', '"a/b/c"', '"a/b:"', '"a/b:c:d"', '"https://replicate.com/a/b"', '"../b"'
        )
    ),
    (
        ('predict = "a/b"', 'input = "x"'),
        "'input' must be a table such as { image = \"{files[0].url}\" }",
    ),
    (
        ('predict = "a/b"', 'input = { image = "{file}" }'),
        _NOTHING,
    ),
    (
        ('predict = "a/b"', 'input = { image = "{" }'),
        "'input' 'image': '{' has a brace without its partner; write {{ or }}",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "problem"), KIND_MISTAKES, ids=range(len(KIND_MISTAKES)))
def test_each_mistake_of_a_kind_gives_one_clear_line(lines: tuple[str, ...], problem: str) -> None:
    assert problems(table(*lines)) == (f"handler 'next': {problem}",)


def test_the_users_own_worker_may_run_a_package_named_like_ours() -> None:
    (found,) = parse(table('job = "app.tasks.x"', 'queue = "thumbs"'), read_secret)
    assert found.target == Call("app.tasks.x", "thumbs")


MISTAKES = [
    (gallery(without="name"), "handler number 1: 'name' is missing"),
    (
        gallery(without="url"),
        "handler 'gallery': one of 'url', 'job' and 'predict' is missing",
    ),
    (gallery(without="secret"), "handler 'gallery': 'secret' is missing"),
    (gallery('colour = "red"'), "handler 'gallery': unknown key 'colour'"),
    *(
        (gallery(f"name = {name}"), "handler number 1: 'name' must be 1 to 64 letters, digits, '_' or '-'")
        for name in ('""', '"a b"', '"a/b"', '"a\\n"', '"é"', f'"{"a" * 65}"', "7", "[]", f'"{SECRET}"')
    ),
    *(
        (gallery(f"url = {url}"), "handler 'gallery': 'url' must be an http or https URL")
        for url in (
            '""', "7", "[]", '"example.com"', '"//example.com/x"', '"ftp://example.com"', '"https://"',
            '"https:///x"', '"https://[::1"', '"https://example.com:99999/"', '"https://example.com:x/"',
            '"https://example.com:0/"', '"https://exa mple.com/"', '"https://example.com/\\n"',
            '"https://example.com/\\tx"', '" https://example.com/"', '"https://example.com/ "',
            '"http://a..b/"', '"http://./"', '"http://.example.com/"', f'"http://{"a" * 64}.example/"',
            '"https://ü..x/"', '"http://127.1/"', '"http://a%20b/"',
        )
    ),
    *(
        (
            gallery(f"on = {on}"),
            "handler 'gallery': 'on' must be a list of statuses: aborted, canceled, failed, succeeded",
        )
        for on in ("[]", '"failed"', '["success"]', '["failed", "Failed"]', "[1]", "[[]]", '["processing"]')
    ),
    *(
        (gallery(f"model = {model}"), "handler 'gallery': 'model' must be a glob such as 'owner/*'")
        for model in ('""', "7", '["a/b"]')
    ),
    *(
        (gallery(f"kind = {kind}"), "handler 'gallery': 'kind' must be 'prediction' or 'training'")
        for kind in ('"poem"', '"predictions"', "7", '["training"]', "{}")
    ),
    *(
        (gallery(f"secret = {secret}"), "handler 'gallery': 'secret' must be text or a list of texts")
        for secret in ("7", "{}", "[]", "[7]", f'["{SECRET}", 7]', "false")
    ),
    (
        gallery('secret = "env:MISSING"'),
        "handler 'gallery': 'secret': the environment variable MISSING is not set",
    ),
    (
        gallery(f'secret = ["{SECRET}", "env:MISSING"]'),
        "handler 'gallery': 'secret' number 2: the environment variable MISSING is not set",
    ),
    (
        gallery('secret = "env:BAD"'),
        "handler 'gallery': 'secret': secret 1 of 1: what follows whsec_ is not standard base64 with padding",
    ),
    (gallery('secret = ""'), "handler 'gallery': 'secret': no secret given; expected whsec_… or whsk_…"),
    (
        gallery('secret = "canary"'),
        "handler 'gallery': 'secret': secret 1 of 1: does not start with whsec_… or whsk_…",
    ),
    (GALLERY + GALLERY, "2 handlers are named 'gallery'"),
    (GALLERY * 3, "3 handlers are named 'gallery'"),
    (f"{GALLERY}\n[[handlers]]", "unknown table or key 'handlers'; only [[handler]] is known"),
    ('[handler]\nname = "a"', "'handler' must be written as [[handler]] tables"),
    ('handler = "a"', "'handler' must be written as [[handler]] tables"),
    ("handler = [7]", "'handler' must be written as [[handler]] tables"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), MISTAKES, ids=range(len(MISTAKES)))
def test_each_mistake_gives_one_clear_line(text: str, line: str) -> None:
    assert problems(text) == (line,)


@pytest.mark.parametrize(
    "text",
    [
        "[[handler]",
        "handler",
        "name = ",
        f"secret = {SECRET}",
        f'secret = "{SECRET}',
        f'[[handler]]\nname = "a"\nname = "{SECRET}"',
        "\ufeff[[handler]]",
        "a = " + "[" * 100_000,
        "a = " + "{a=" * 100_000,
        "a = " + "9" * 5000,
        "a = 2025-13-01",
        "\0",
    ],
    ids=range(12),
)
def test_what_is_not_toml_gives_one_line(text: str) -> None:
    (line,) = problems(text)
    assert line.startswith("not TOML")
    assert len(line) < 200


def test_all_mistakes_are_told_at_once() -> None:
    text = f"""
    colour = "red"
    [[handler]]
    name = "a"
    url = "nowhere"
    secret = "env:MISSING"
    on = []
    [[handler]]
    name = "b"
    url = "https://example.com/"
    secret = "{SECRET}"
    [[handler]]
    name = "a"
    [[handler]]
    """
    assert problems(text) == (
        "unknown table or key 'colour'; only [[handler]] is known",
        "handler 'a': 'on' must be a list of statuses: aborted, canceled, failed, succeeded",
        "handler 'a': 'url' must be an http or https URL",
        "handler 'a': 'secret': the environment variable MISSING is not set",
        "handler 'a': one of 'url', 'job' and 'predict' is missing",
        "handler number 4: 'name' is missing",
        "handler number 4: one of 'url', 'job' and 'predict' is missing",
        "2 handlers are named 'a'",
    )


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.sampled_from(["[[handler]]", "\n", "name", "=", '"a"', "[", "]", "url"])).map("".join)
)
def test_no_text_raises_anything_but_a_list_of_problems(text: str) -> None:
    with suppress(ConfigurationError):
        parse(text, read_secret)


@pytest.mark.parametrize("status", sorted(TERMINAL | {"exploded"}))
def test_without_filters_a_handler_wants_every_end(status: str) -> None:
    assert handler().wants(ended(status))
    assert handler().wants(ended(status, kind=Kind.TRAINING, model=None))


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_status_filter_takes_exactly_its_words(status: str) -> None:
    assert handler(on=[status]).wants(ended(status))
    assert not any(handler(on=[status]).wants(ended(word)) for word in TERMINAL - {status} | {"exploded"})


@pytest.mark.parametrize("kind", list(Kind))
def test_a_kind_filter_takes_one_kind(kind: Kind) -> None:
    assert [handler(kind=kind).wants(ended(kind=other)) for other in Kind] == [
        other is kind for other in Kind
    ]


@pytest.mark.parametrize(
    ("glob", "models"),
    [
        ("black-forest-labs/*", ["black-forest-labs/flux-dev", "black-forest-labs/flux-pro"]),
        ("*/flux-dev", ["black-forest-labs/flux-dev", "me/flux-dev"]),
        ("*flux*", ["black-forest-labs/flux-dev", "black-forest-labs/flux-pro", "me/flux-dev"]),
        ("me/flux-dev", ["me/flux-dev"]),
        ("m?/flux-[a-e]ev", ["me/flux-dev"]),
        ("black-forest-labs", []),
        ("ME/*", []),
        ("[", []),
        ("?*", ["black-forest-labs/flux-dev", "black-forest-labs/flux-pro", "me/flux-dev"]),
        ("*", ["black-forest-labs/flux-dev", "black-forest-labs/flux-pro", "me/flux-dev", None]),
    ],
)
def test_a_model_filter_is_a_glob_over_the_whole_name(glob: str, models: list[str | None]) -> None:
    known = ["black-forest-labs/flux-dev", "black-forest-labs/flux-pro", "me/flux-dev", None]
    assert [model for model in known if handler(model=glob).wants(ended(model=model))] == models


def test_all_filters_must_hold() -> None:
    picky = handler(on=["failed"], model="me/*", kind="training")
    assert picky.wants(ended("failed", "me/x", Kind.TRAINING))
    assert not picky.wants(ended("succeeded", "me/x", Kind.TRAINING))
    assert not picky.wants(ended("failed", "you/x", Kind.TRAINING))
    assert not picky.wants(ended("failed", "me/x", Kind.PREDICTION))


def test_the_interested_are_told_in_the_order_of_the_file() -> None:
    text = GALLERY.replace("gallery", "b") + GALLERY.replace("gallery", "a") + gallery('on = ["failed"]')
    found = parse(text, read_secret)
    assert [one.name for one in interested(found, ended())] == ["b", "a"]
    assert [one.name for one in interested(found, ended("failed"))] == ["b", "a", "gallery"]
