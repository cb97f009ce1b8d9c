"""Whether the doctor finds the functions of users, without running a line of theirs."""

from pathlib import Path

import pytest

from app.health.doctor import missing

TRAP = "raise RuntimeError('this was run')\n"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(TRAP + "from .tools import helper\nclass Maker: pass\n")
    (tmp_path / "mine" / "tasks.py").write_text(TRAP + "def keep(event): pass\n")
    (tmp_path / "mine" / "broken.py").write_text("def keep(event)\n    pass\n")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "tasks.py").write_text("def keep(event): pass\n")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["mine.tasks.keep", "mine.helper", "mine.Maker.make", "loose.tasks.keep", "json.dumps", "math.floor"],
)
def test_what_is_there_is_found(code: Path, name: str) -> None:
    assert missing(name, code) is None


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("nowhere.keep", "there is no module 'nowhere' in {code} or among the installed packages"),
        ("mine.tasks.kept", "{code}/mine/tasks.py has no 'kept'"),
        ("mine.others.keep", "{code}/mine/__init__.py has no 'others'"),
        ("loose.keep", "the folder 'loose' holds no 'keep'"),
        ("mine.broken.keep", "{code}/mine/broken.py is no Python (expected ':', line 1)"),
    ],
)
def test_what_is_not_is_named_with_its_place(code: Path, name: str, trouble: str) -> None:
    assert missing(name, code) == trouble.format(code=code)
