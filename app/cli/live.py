"""How a prediction is shown while it runs: on a terminal as it grows, elsewhere a line for each change."""

from typing import Protocol

import click

from app.cli.terminal import flow, say
from app.core.outputs import joined_text
from app.core.prediction import Prediction
from app.core.progress import bar, grown, percentage

_CLEAR = "\r\x1b[K"
_STEP = 10


class Display(Protocol):
    """What is told of a prediction, in this order."""

    def show(self, prediction: Prediction) -> None:
        """How it is now."""

    def warn(self, text: str) -> None:
        """Something takes long, or failed for a while."""

    def end(self) -> None:
        """Leave the cursor at the begin of a line; `show` may come again."""

    @property
    def has_shown_text(self) -> bool:
        """Whether text that it made was printed already."""


class Lines:
    """On standard error, a line when the status or the tenth of the way changes."""

    has_shown_text = False

    def __init__(self) -> None:
        self._latest = ""

    def show(self, prediction: Prediction) -> None:
        """Print a line unless it would be the same as before."""
        percent = percentage(prediction.logs)
        state = prediction.status
        if percent is not None and not prediction.is_terminal:
            state += f" {percent // _STEP * _STEP}%"
        if state != self._latest:
            say(f"{prediction.id} {state}", err=True)
        self._latest = state

    def warn(self, text: str) -> None:
        """Print it."""
        say(text, err=True)

    def end(self) -> None:
        """Nothing is left open."""


class Terminal:
    """A bar on standard error; text on standard output as it grows, from then on without the bar."""

    def __init__(self) -> None:
        self._text = ""
        self._line = ""

    @property
    def has_shown_text(self) -> bool:
        """Whether it has begun."""
        return bool(self._text)

    def show(self, prediction: Prediction) -> None:
        """Print what is new."""
        text = joined_text(prediction.output)
        if text is not None and text != self._text:
            self._redraw("")
            flow(grown(self._text, text))
            self._text = text
        elif not self._text:
            percent = percentage(prediction.logs)
            shown = f" {bar(percent)}" if percent is not None else ""
            self._redraw(f"{prediction.status}{shown}")

    def warn(self, text: str) -> None:
        """Print it on a line of its own."""
        self.end()
        say(text, err=True)

    def end(self) -> None:
        """Take the bar away, or end the line of text."""
        self._redraw("")
        if self._text and not self._text.endswith("\n"):
            click.echo()

    def _redraw(self, line: str) -> None:
        if line != self._line:
            click.echo(f"{_CLEAR}{line}", nl=False, err=True)
        self._line = line
