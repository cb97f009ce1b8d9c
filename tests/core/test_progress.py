from typing import Any

import pytest
from replicate.prediction import Prediction

from app.cli.kept import bar, grown
from app.core.progress import percentage


@pytest.mark.parametrize(
    ("logs", "percent"),
    [
        ("", None),
        ("Using seed: 7\n", None),
        (" 33%|###       | 1/3\n 66%|######    | 2/3\n", 66),
        ("seed\r  0%|          | 0/28 [00:00<?, ?it/s]\r 14%|█▍        | 4/28 [00:00<00:00, 31.15it/s]", 14),
        ("100%|██████████| 28/28 [00:01<00:00, 22.9it/s]\nsaving\n", 100),
        ("progress: 50%\n", None),
        ("50% off | today\n", None),
        ("999%|#| 1/1\n", 100),
        (" 10%|#| 1/10\n" + "x" * 30_000, None),
    ],
)
def test_the_latest_line_of_a_bar_tells_how_far_it_is(logs: str, percent: int | None) -> None:
    assert percentage(logs) == percent


def test_recorded_logs_are_read_as_the_official_client_reads_them(samples: list[dict[str, Any]]) -> None:
    bars = 0
    for sample in samples:
        logs = sample["object"].get("logs") or ""
        theirs = Prediction.Progress.parse(logs[-15_000:])
        if theirs is not None:
            bars += 1
            # They do not know that a bar is drawn over itself.
            assert (percentage(logs) or 0) >= round(theirs.percentage * 100)
    assert bars


@pytest.mark.parametrize(
    ("percent", "drawn"),
    [(0, "[          ]   0%"), (45, "[####      ]  45%"), (100, "[##########] 100%")],
)
def test_a_bar_has_one_width(percent: int, drawn: str) -> None:
    assert bar(percent, width=10) == drawn


@pytest.mark.parametrize(
    ("before", "after", "printed"),
    [("", "A", "A"), ("A", "A river", " river"), ("A", "A", ""), ("A lake", "A river", "\nA river")],
)
def test_only_what_is_new_of_a_text_is_printed(before: str, after: str, printed: str) -> None:
    assert grown(before, after) == printed
