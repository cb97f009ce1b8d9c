"""How far a prediction is that still runs: what its logs and its output so far tell."""

import re
from typing import Any

from app.core.outputs import joined_text
from app.core.prediction import Prediction

_BAR = re.compile(r"\s*(?P<percent>[0-9]{1,3})%\s*\|.*\|\s*[0-9]+/[0-9]+", re.ASCII)
"""A line of tqdm, of which most models are made."""

_TAIL = 20_000
"""Characters of the logs in which the latest line is looked for."""

MOST_TEXT, MOST_LOGS, MOST_TOKENS = 2000, 1000, 500
"""Characters of text and logs, and tokens of a streamed text, that are kept of what runs: the last ones."""


def percentage(logs: str) -> int | None:
    """The latest percentage, 0 to 100; None when the model tells none."""
    for line in reversed(re.split(r"[\r\n]", logs[-_TAIL:])):
        found = _BAR.match(line)
        if found:
            return min(int(found["percent"]), 100)
    return None


def live(prediction: Prediction) -> dict[str, Any]:
    """What is shown of it meanwhile: `percent`, and the ends of `text` and `logs`; empty when nothing is."""
    output = prediction.output
    if isinstance(output, list):  # each token may be as long as a body
        output = [token[-MOST_TEXT:] if isinstance(token, str) else token for token in output[-MOST_TOKENS:]]
    text = joined_text(output[-MOST_TEXT:] if isinstance(output, str) else output)
    shown = {
        "percent": percentage(prediction.logs),
        "text": text and text[-MOST_TEXT:],
        "logs": prediction.logs[-MOST_LOGS:] or None,
    }
    return {key: value for key, value in shown.items() if value is not None}
