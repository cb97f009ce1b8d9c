"""`outkeep demo`, run as a person runs it."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from app.demo.stage import failure
from tests.e2e.running import OUTKEEP, kill_all, processes_of, until

pytestmark = pytest.mark.slow

PATIENCE = 90
HOSTILE = {
    "ALL_PROXY": "http://127.0.0.1:1",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "HOST": "nowhere.invalid",
    "LOG_LEVEL_FILE": "/nowhere",
    "OUTKEEP_DATA": "/proc/nowhere",
    "OUTKEEP_HANDLERS": "/nowhere.toml",
    "OUTKEEP_MISSPELT": "1",
    "OUTKEEP_STORAGE": "s3://nowhere",
    "PORT_FILE": "/nowhere",
    "REDIS_URL": "redis://127.0.0.1:1",
    "REPLICATE_API_TOKEN": "r8_not_for_the_simulator",
    "REPLICATE_BASE_URL": "http://127.0.0.1:1",
    "REPLICATE_WEBHOOK_SECRET": "nonsense",
}


@contextmanager
def demo(
    data: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """The demonstration on `data`, in a process group of its own, started in the folder of `data`."""
    with subprocess.Popen(
        [OUTKEEP, "demo", "--data", data.name, *options],
        cwd=data.parent,
        env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            kill_all(data)


def read_until(process: "subprocess.Popen[str]", beginning: str) -> str:
    """Read its output up to a line that begins so, and give it back."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    raise AssertionError(f"it never said {beginning!r}: {process.stderr and process.stderr.read()}")


def one_line(process: "subprocess.Popen[str]", code: int = 1) -> str:
    """The one line of complaint of a demonstration that failed."""
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    (line,) = errors.splitlines()
    return line


def test_it_shows_every_shape_kept_and_handed_on_and_what_to_try_next_whatever_is_configured(
    tmp_path: Path,
) -> None:
    (tmp_path / "outkeep.toml").write_text("this is [ no handlers file")
    for name in ("app", "workers", "redis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the {name} of someone else')")
    data = tmp_path / "it's a demo"
    with demo(data, environment=HOSTILE) as process:
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, "")
        assert processes_of(data) == []
    for label, files in (
        ("an image", ["output-0.png"]),
        ("four images", [f"output-{number}.png" for number in range(4)]),
        ("a text, word by word", ["output.txt"]),
        ("trained weights", ["output-0.tar"]),
    ):
        assert re.findall(rf"^   kept +{label} +(\S+)", output, re.MULTILINE) == files
        assert re.search(rf"^   told +{label} .* signature verified$", output, re.MULTILINE)
    for place in re.findall(rf"^      ({re.escape(str(data))}.*)$", output, re.MULTILINE):
        assert Path(place).exists()
    commands = re.findall(r"^      ((?:ls|OUTKEEP_DATA=).*)$", output, re.MULTILINE)
    assert len(commands) == 2  # what to try next
    for command in commands:
        shown = subprocess.run(command, shell=True, cwd=data, capture_output=True, text=True, check=True)
        assert "output-0.png" in shown.stdout


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "outkeep.toml").write_text("# mine\n")
    with demo(data) as process:
        line = one_line(process, code=2)
    assert line == "outkeep: --data: data is not empty; name a new folder for the demonstration"
    assert [(path.name, path.read_text()) for path in data.iterdir()] == [("outkeep.toml", "# mine\n")]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("a file in its place")
    with demo(data) as process:
        assert one_line(process, code=2) == "outkeep: --data: cannot use data: File exists"


def test_a_failure_is_one_line_that_says_why_and_names_the_log(tmp_path: Path) -> None:
    (tmp_path / "outkeep.log").write_text('{"level": "info"}\noutkeep: PORT: taken\n{"level": "info"}\n')
    error = failure("Outkeep did not start", tmp_path)
    assert error.message == f"Outkeep did not start: PORT: taken; its log is {tmp_path}/outkeep.log"


def test_an_end_in_the_middle_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with demo(data) as process:
        read_until(process, "2. ")
        (up,) = [one for one in processes_of(data) if one.ppid() == process.pid]
        up.terminate()
        line = one_line(process)
        assert processes_of(data) == []
    assert line == f"outkeep: Outkeep stopped before all was handed on; its log is {data}/outkeep.log"


def test_with_stay_it_runs_until_ctrl_c_and_leaves_no_process(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with demo(data, "--stay") as process:
        read_until(process, "Look at what was kept")
        link, other = [line.strip() for line in (read_until(process, "      ") for _ in range(2))]
        read_until(process, "Everything keeps running")
        cookies = httpx.get(link, timeout=60, trust_env=False).cookies
        page = httpx.get(urljoin(link, "/predictions"), cookies=cookies, timeout=60, trust_env=False)
        assert page.text.count("/thumbs/predictions/") >= 4
        made = subprocess.check_output(f"{other} --print", shell=True, cwd=tmp_path, text=True)
        assert made.startswith(urljoin(link, "/sign-in?link="))
        assert "link=" not in (data / "outkeep.log").read_text()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, "")
        assert processes_of(data) == []
    assert '"killed' not in (data / "outkeep.log").read_text()


def test_a_killed_demonstration_leaves_no_process(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with demo(data) as process:
        read_until(process, "2. ")
        process.kill()
        until(lambda: not processes_of(data), "everything ends with it")
