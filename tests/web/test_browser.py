"""The dashboard as its user walks it, in a real browser; one deployment and one browser for all."""

import json
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect
from playwright.sync_api import Error as PlaywrightError

from tests.e2e.running import OUTKEEP
from tests.web.stage import Stage, chromium, signed_in, stage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 60_000
"""Milliseconds: other tests run beside this one."""

EVIL = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script><svg onload=window.hacked=1>'

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def state(shown: Stage, browser: Browser) -> Any:
    """The cookie of somebody who followed the printed link."""
    context = signed_in(browser, shown)
    found = context.storage_state()
    context.close()
    return found


@pytest.fixture
def visit(shown: Stage, browser: Browser, state: Any) -> Iterator[Callable[..., Page]]:
    """Open a path; `how` is what Playwright takes for a profile."""
    contexts = []

    def opened(path: str = "/", **how: Any) -> Page:
        context = browser.new_context(storage_state=state, base_url=shown.up.url, **how)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "'self'" in said.text else None)
        page.goto(path)
        page.faults = faults  # type: ignore[attr-defined]
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            assert getattr(page, "faults", []) == []
        context.close()


def every_page(shown: Stage) -> list[str]:
    first, text, several, sound = (f"/predictions/{one}" for one in shown.ids[:4])
    return [
        "/", "/predictions", "/predictions?view=table", "/predictions?q=nowhere", first, text, several, sound,
        f"{first}/remove", "/failures", "/handlers", "/checks", "/stats", "/albums",
    ]  # fmt: skip


def test_a_link_signs_in_once_and_a_session_is_needed(shown: Stage, browser: Browser, state: Any) -> None:
    page = browser.new_page()
    page.goto(shown.link())
    expect(page.get_by_role("alert")).to_contain_text("used already")
    page.goto(f"{shown.up.url}/predictions")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.close()


def test_one_is_watched_live_found_by_a_word_opened_and_removed(
    shown: Stage, visit: Callable[..., Page]
) -> None:
    page = visit("/")
    made = shown.create("outkeep/llama", {"prompt": "a quiet zeppelin over the lake", "seconds": 8})
    expect(page.locator("#running")).to_contain_text("outkeep/llama")
    expect(page.locator("#running")).to_contain_text("A river")
    expect(page.locator("#newest")).to_contain_text("a quiet zeppelin")
    page.locator("#newest").get_by_text("a quiet zeppelin").click()
    page.wait_for_url(f"**/predictions/{made}")

    page.goto("/predictions")
    page.keyboard.press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.keyboard.type("zeppelin")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=zeppelin**")
    expect(page.locator("[data-item]")).to_have_count(1)

    page.locator("[data-item] a.open").click()
    page.get_by_role("link", name="Remove …").click()
    page.get_by_role("button", name="Remove for good").click()
    expect(page.get_by_role("status")).to_contain_text("Removed")
    page.goto(f"/predictions/{made}")
    expect(page.locator("body")).to_contain_text("Nothing is known")
    page.goto("/predictions?q=zeppelin")
    expect(page.get_by_text("Nothing matches")).to_be_visible()
    assert not (shown.up.outputs / "predictions" / made).exists()


@pytest.mark.parametrize(("place", "player"), [(3, "audio"), (4, "video")])
def test_sounds_and_films_are_played_from_anywhere(
    shown: Stage, visit: Callable[..., Page], place: int, player: str
) -> None:
    page = visit(f"/predictions/{shown.ids[place]}")
    found = page.locator(player).first
    found.evaluate(
        "player => new Promise((resolve, reject) => {"
        " player.onseeked = resolve; player.onerror = () => reject(player.error);"
        " player.muted = true; player.currentTime = 2; })"
    )
    assert found.evaluate("player => player.currentTime") == pytest.approx(2, abs=0.2)


def test_a_handler_that_is_off_is_switched_on_and_told_what_it_missed(
    shown: Stage, visit: Callable[..., Page]
) -> None:
    page = visit("/")
    expect(page.locator("#needs")).to_contain_text("archive is switched off")
    shown.handlers.answer = lambda _: 204
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_role("status")).to_contain_text("switched on")

    page.goto("/failures?handler=archive")
    page.get_by_role("button", name="Replay all that match").click()
    page.get_by_role("button", name=re.compile(r"^Replay \d+$")).click()
    expect(page.get_by_role("status")).to_contain_text("are done again")
    shown.handlers.wait_for(
        lambda them: [one.path for one in them.of(shown.ids[1])].count("/archive") == 2, "it is told again"
    )
    page.goto("/failures")
    expect(page.get_by_text("Nothing was given up")).to_be_visible()

    page.goto("/handlers")
    page.locator("#archive").get_by_role("button", name="Send a sample").click()
    expect(page.get_by_role("status")).to_contain_text("It took the sample: 204")


def test_one_is_run_again_with_a_changed_input_and_shows_its_parent(
    shown: Stage, visit: Callable[..., Page]
) -> None:
    parent = shown.ids[0]
    page = visit(f"/predictions/{parent}")
    page.get_by_label("prompt", exact=True).fill("a lighthouse at dawn")
    page.get_by_role("button", name="Run again").click()
    page.wait_for_url(lambda url: "note=" in url and parent not in url)
    child = page.url.partition("?")[0].rpartition("/")[2]
    shown.until_handed_on(child)

    page.goto(f"/predictions/{child}")
    expect(page.locator(".input")).to_contain_text("a lighthouse at dawn")
    expect(page.locator(".input .before")).to_contain_text("a lighthouse at dusk")
    page.locator("#kin a").first.click()
    page.wait_for_url(f"**/predictions/{parent}")
    expect(page.locator("#kin a")).to_have_count(2)


def test_the_keyboard_alone_suffices(shown: Stage, visit: Callable[..., Page]) -> None:
    page = visit("/predictions")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    for key in "jjkxjX":
        page.keyboard.press(key)
    expect(page.locator("[data-chosen]")).to_have_text("2 chosen")
    wanted = page.evaluate("document.activeElement.getAttribute('href')")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{wanted}")


def test_a_selection_is_downloaded_as_one_archive(
    shown: Stage, visit: Callable[..., Page], tmp_path: Path
) -> None:
    page = visit("/predictions?model=outkeep/images")
    page.locator(".tile").first.hover()
    page.locator(".pick input").first.check()
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download").click()
    coming.value.save_as(tmp_path / "archive.zip")
    folder = shown.up.outputs
    with zipfile.ZipFile(tmp_path / "archive.zip") as archive:
        names = archive.namelist()
        assert len(names) == 4
        assert all(archive.read(name) == (folder / name).read_bytes() for name in names)


def test_without_scripts_pages_are_read_searched_and_used(shown: Stage, visit: Callable[..., Page]) -> None:
    page = visit("/", java_script_enabled=False)
    expect(page.locator("#truth h1")).to_be_visible()
    page.get_by_role("link", name="Gallery", exact=True).click()
    page.get_by_label("Search").fill("lighthouse")
    page.get_by_role("button", name="Show").click()
    page.locator("a.open").last.click()
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("status")).to_contain_text("It is told again")
    page.goto("/predictions?view=table")
    page.locator(".pick input").first.check()
    page.get_by_role("button", name="Remove …").click()
    expect(page.get_by_role("heading", name=re.compile("^Remove"))).to_be_visible()


def test_nothing_is_wider_than_a_phone_and_the_first_view_is_light(
    shown: Stage, visit: Callable[..., Page]
) -> None:
    page = visit("/", viewport={"width": 390, "height": 844})
    taken: list[tuple[str, int]] = []
    page.on("response", lambda got: taken.append((got.url, int(got.headers.get("content-length", 0)))))
    page.goto("/")
    page.wait_for_load_state("load")
    assert {url for url, _ in taken if not url.startswith(shown.up.url)} == set()
    assert sum(size for url, size in taken if "/files/" not in url and "/thumbs/" not in url) < 150_000
    for path in every_page(shown):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


@pytest.fixture(scope="session")
def axe() -> str:
    """The judge of pages, as the lock file of the tests names it."""
    subprocess.run(["make", "--no-print-directory", "node"], cwd=ROOT, check=True, timeout=600)
    return (ROOT / ".venv-node" / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(shown: Stage, visit: Callable[..., Page], axe: str, scheme: str) -> None:
    page = visit("/", color_scheme=scheme)
    for path in [*every_page(shown), "/sign-in"]:
        page.goto(path)
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [
            (one["id"], [node["target"] for node in one["nodes"]][:4])
            for one in found["violations"]
            if one["impact"] in {"serious", "critical"}
        ]
        assert serious == [], path


SCRIPT = "<script>parent.hacked=1;opener&&(opener.hacked=1);document.title='hacked'</script>"
DOCUMENTS = {
    "a.html": (f"<!doctype html><html><body>{SCRIPT}", "text/html"),
    "b.svg": (
        f'<svg xmlns="http://www.w3.org/2000/svg" onload="parent.hacked=1">{SCRIPT}</svg>',
        "image/svg+xml",
    ),
    "c.pdf": (f"%PDF-1.4 {SCRIPT}", "application/pdf"),
    "d.png": (f"\x89PNG\r\n\x1a\n{SCRIPT}", "image/png"),
    "e.txt": (SCRIPT, "text/plain"),
    "f.js": ("window.hacked=1", "text/javascript"),
    "g.json": (json.dumps({"a": SCRIPT}), "application/json"),
    "h.gif": (f"GIF89a/*{SCRIPT}*/=1;window.hacked=1", "image/gif"),
}
"""What a model may give: documents with scripts, and pictures that are scripts as well."""


def send_hostile(shown: Stage) -> None:
    """A prediction of which every text is markup, and every file a document with a script."""
    urls = [
        shown.simulator.add_file(name, content.encode("latin-1"), content_type=media_type)
        for name, (content, media_type) in DOCUMENTS.items()
    ]
    body = {
        "id": "hostile", "status": "succeeded", "model": f"evil/{EVIL}", "version": EVIL, "error": EVIL,
        "input": {"prompt": f"{EVIL} {'W' * 300}", EVIL: EVIL, "url": "javascript:window.hacked=1"},
        "logs": EVIL,
        "output": {"files": urls, "link": "javascript:window.hacked=1", "more": [EVIL]},
        "metrics": {"predict_time": 1, EVIL: EVIL}, "created_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (shown.up.folder / "hostile.json").write_text(json.dumps(body))
    query = f"?{urlencode({'a': EVIL, EVIL: 'b'})}"
    command = [OUTKEEP, "send", "hostile.json", "--to", shown.up.hook + query]
    subprocess.run(command, cwd=shown.up.folder, env=shown.up.environment, check=True, capture_output=True)
    shown.until_handed_on("hostile")


def test_nothing_of_a_strangers_runs_wherever_it_is_shown_or_opened(
    shown: Stage, visit: Callable[..., Page]
) -> None:
    send_hostile(shown)
    page = visit("/predictions/hostile", viewport={"width": 390, "height": 844})
    expect(page.locator("#outputs figure")).to_have_count(len(DOCUMENTS))
    assert page.locator("[href^='javascript'], [src^='javascript'], iframe, object, embed").count() == 0
    links = page.locator("figcaption a").evaluate_all("all => all.map(one => one.href)")
    assert len(links) == len(DOCUMENTS)
    search, handler = urlencode({"q": EVIL}), urlencode({"handler": EVIL})
    paths = ["/", f"/predictions?{search}", f"/failures?{handler}", "/stats", "/predictions/hostile/remove"]
    made: dict[str, str | float | bool] = {
        "ref": "predictions/hostile",
        "sure": "yes",
        "days": "1",
        "prompts": "true",
    }
    album = page.request.post("/albums", form=made, headers={"origin": shown.up.url}).text()
    paths += re.findall(r"http://[^<\s\"]+/album/[^<\s\"]+", album)[:1]
    assert "/album/" in paths[-1]
    for path in [*paths, "/predictions", "/predictions?view=table", "/predictions/hostile"]:
        page.goto(path)
        page.wait_for_load_state("load")
        assert page.evaluate("window.hacked") is None, path
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    for link in links:
        with suppress(PlaywrightError):  # it is downloaded instead
            page.goto(link)
            assert page.title() != "hacked", link
            assert page.evaluate("window.hacked") is None, link
            assert page.evaluate("window.origin") == "null", "it is in no origin of ours"


def test_foreign_sites_neither_post_nor_frame_nor_read(shown: Stage, visit: Callable[..., Page]) -> None:
    page = visit("/")
    there = shown.up.url
    foreign = f"http://localhost:{page.url.rpartition(':')[2].strip('/')}"
    wanted = f"{there}/predictions/{shown.ids[8]}"
    form = f'<form method="post" action="{wanted}/remove"><input name="sure" value="yes"></form>'
    page.route(f"{foreign}/**", lambda route: route.fulfill(content_type="text/html", body=form))
    page.goto(f"{foreign}/evil")
    page.evaluate("document.forms[0].submit()")
    page.wait_for_url(f"{wanted}/remove")
    assert (shown.up.outputs / "predictions" / shown.ids[8] / "prediction.json").exists()

    page.goto(f"{foreign}/evil")
    read = "fetch(where, {credentials: 'include'}).then(() => 'read', () => 'refused')"
    assert page.evaluate(f"where => {read}", f"{there}/predictions") == "refused"
    page.set_content(f'<iframe src="{there}/"></iframe>')
    page.wait_for_timeout(300)
    assert all("Outkeep" not in (frame.title() or "") for frame in page.frames[1:])
