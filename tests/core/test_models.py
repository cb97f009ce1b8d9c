import pytest

from app.core.request import Model, parse_model, parse_runnable

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("black-forest-labs/flux-schnell", Model("black-forest-labs/flux-schnell")),
        ("stability-ai/stable-diffusion-3.5", Model("stability-ai/stable-diffusion-3.5")),
        (f"owner/name:{VERSION}", Model("owner/name", VERSION)),
        (VERSION, Model("", VERSION)),
        ("deployments/me/mine", Model("me/mine", is_deployment=True)),
    ],
)
def test_what_can_be_run_is_named_in_every_way_that_replicate_knows(text: str, model: Model) -> None:
    assert parse_runnable(text) == model


def test_a_handler_names_its_model() -> None:
    assert parse_model(VERSION) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "name", "/name", "owner/", "owner/name/", "a/b/c", "owner/name:", VERSION[1:], f"{VERSION}0"),
        *("../x", "owner/..", "o w/n", "owner/näme", "owner/name\n", "a/b?c", "a/b#c"),
        *("https://replicate.com/owner/name", "deployments/me/mine/x", f"deployments/me/mine:{VERSION}"),
    ],
)
def test_anything_else_can_not_be_run(text: str) -> None:
    assert parse_runnable(text) is None
