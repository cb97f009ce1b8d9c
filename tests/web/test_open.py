"""`up` says where the dashboard is, and `open` leads there."""

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.running import OUTKEEP, Up, running_up

pytestmark = pytest.mark.slow


def open_(up: Up, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [OUTKEEP, "open", *more]
    return subprocess.run(
        command, cwd=up.folder, env=up.environment, capture_output=True, text=True, timeout=60, check=False
    )


def printed_link(up: Up) -> str:
    """The link that `up` has printed."""
    (link,) = re.findall(r"http://127\.0\.0\.1:\d+/sign-in\?link=\S+", up.text())
    return str(link)


def signs_in(link: str) -> int:
    return httpx.get(link, trust_env=False).status_code


def test_up_prints_a_link_that_signs_in_once_and_open_makes_another(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        assert [signs_in(printed_link(up)) for _ in range(2)] == [200, 403]
        assert signs_in(open_(up).stdout.strip()) == 200
        assert signs_in(json.loads(open_(up, "--json").stdout)["url"]) == 200
        up.stop()
        failed = open_(up)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith(f"outkeep: {up.url} does not answer")


@pytest.mark.parametrize(
    ("settings", "on"),
    [({"OUTKEEP_ADMIN_TOKEN": "of-the-user"}, True), ({"HOST": "0.0.0.0"}, False)],
    ids=["a token of the user's", "open to the network"],
)
def test_a_link_is_printed_only_where_up_has_made_the_token(
    tmp_path: Path, settings: dict[str, str], *, on: bool
) -> None:
    with running_up(tmp_path, settings=settings) as up:
        assert "sign-in" not in up.text()
        assert (f"The dashboard: {up.url}/\n" in up.text()) == on
        found = open_(up)
        assert (found.returncode == 0) == on
        assert on or "OUTKEEP_ADMIN_TOKEN" in found.stderr
