"""What shows of a module without running it."""

import pytest

from app.health.doctor import defines


@pytest.mark.parametrize(
    "source",
    [
        "def keep(event): pass",
        "async def keep(event): pass",
        "class keep: pass",
        "keep = print",
        "keep: object = print",
        "from elsewhere import keep",
        "import other as keep",
        "try:\n    from fast import keep\nexcept ImportError:\n    def keep(event): pass",
        "if True:\n    with open('x'):\n        keep = other = 1",
        "from elsewhere import *",
        "def __getattr__(name): return print",
        "# -*- coding: latin-1 -*-\nkeep = '\xe9'",
    ],
)
def test_what_a_module_may_have_is_found(source: str) -> None:
    assert defines(source.encode("latin-1"), "keep")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "keep",
        "print(keep)",
        "def other():\n    keep = 1",
        "class Other:\n    def keep(self): pass",
        "import keep.other as x",
    ],
)
def test_what_it_has_not_is_not(source: str) -> None:
    assert not defines(source.encode(), "keep")


@pytest.mark.parametrize("source", [b"def keep(", b"keep = '\xff'", b"#\n#\n#\nkeep = '\xff'", b"keep = 1\0"])
def test_what_is_no_python_is_refused(source: bytes) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        defines(source, "keep")
