"""What docs/guarantees.md says is tested must be."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)\(", re.MULTILINE)
NAMED = re.compile(r"`(test_\w+)`")


def defined_in(folder: Path) -> set[str]:
    return {name for path in folder.rglob("test_*.py") for name in DEFINED.findall(path.read_text())}


def rows() -> Iterator[tuple[str, str]]:
    """`(fault, state)` of each row of the tables of faults."""
    for line in TEXT.partition("## Every fault we know")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] != "fault" and not set(line) <= set("|-"):
            yield cells[0], cells[-1]


def test_each_test_that_the_guarantees_name_exists() -> None:
    named = set(NAMED.findall(TEXT))
    assert len(named) > 100
    assert named <= defined_in(ROOT / "tests")


def test_each_fault_is_tested_or_says_why_not() -> None:
    found = list(rows())
    assert len(found) > 60
    for fault, state in found:
        word, _, rest = state.partition(":")
        assert word in {"tested", "tested in parts", "slow", "not covered"}, fault
        assert rest.strip(), fault
        assert word == "not covered" or NAMED.search(rest), fault


def test_only_what_runs_in_make_test_counts_as_tested() -> None:
    slow = defined_in(ROOT / "tests" / "soak")
    for fault, state in rows():
        if state.startswith("tested"):
            assert not slow & set(NAMED.findall(state)), fault
