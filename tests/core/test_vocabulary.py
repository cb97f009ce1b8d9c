"""The manifest of names against the source: nothing is said that is not in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.vocabulary import COUNTERS, EVENTS, GAUGES, HISTOGRAMS, Counter, Gauge, Histogram

ROOT = Path(__file__).parents[2]
METHODS = {"debug": 0, "info": 0, "warning": 0, "error": 0, "critical": 0, "exception": 0, "log": 1}
"""Methods of a logger, with the place of the sentence among their arguments."""

_PLACEHOLDER = re.compile(r"%(?:\.\d+)?[a-z]")


def sentence_place(call: ast.Call) -> int:
    assert isinstance(call.func, ast.Attribute)
    return METHODS[call.func.attr]


def calls(source: str) -> Iterator[tuple[ast.Call, str]]:
    """Each call of a logger's method, and what it says; a sentence that is put together has no name."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) in {"log", "logger", "logging"}
            and node.func.attr in METHODS
        ):
            sentence = node.args[sentence_place(node)]
            assert isinstance(sentence, ast.Constant), f"not a plain text: {ast.unparse(node)}"
            yield node, str(sentence.value)


def modules() -> list[Path]:
    return sorted(path for folder in ("app", "workers") for path in (ROOT / folder).rglob("*.py"))


def test_modules_log_only_what_is_listed() -> None:
    for path in modules():
        for call, sentence in calls(path.read_text()):
            where = f"{path.relative_to(ROOT)}:{call.lineno}"
            assert sentence in EVENTS, f"{where}: add it to app.core.vocabulary"
            values = call.args[sentence_place(call) + 1 :]
            assert len(_PLACEHOLDER.findall(sentence)) == len(values), f"{where}: too few or many values"


def test_nothing_is_listed_in_vain() -> None:
    said = {sentence for path in modules() for _, sentence in calls(path.read_text())}
    assert set(EVENTS) - said == set()


@pytest.mark.parametrize(
    "source",
    ["log.info(f'told {name}')", "log.warning('told ' + name)", "log.error(message)"],
)
def test_a_sentence_that_is_put_together_is_noticed(source: str) -> None:
    with pytest.raises(AssertionError, match="not a plain text"):
        list(calls(source))


def test_loggers_have_one_name_so_that_this_test_sees_them() -> None:
    for path in modules():
        for made in re.findall(r"^(\w+) = .*getLogger\(\"outkeep", path.read_text(), re.MULTILINE):
            assert made == "log", path


def test_names_are_plain_words() -> None:
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in EVENTS.values())


def test_names_of_metrics_follow_the_rules_of_prometheus() -> None:
    metrics: list[Counter | Histogram | Gauge] = [*COUNTERS, *HISTOGRAMS, *GAUGES]
    assert len({metric.name for metric in metrics}) == len(metrics)
    assert all(re.fullmatch(r"outkeep_[a-z_]+", metric.name) for metric in metrics)
    assert all(metric.help.endswith(".") for metric in metrics)
    assert all(counter.name.endswith("_total") for counter in COUNTERS)
    assert all(list(histogram.buckets) == sorted(set(histogram.buckets)) for histogram in HISTOGRAMS)
