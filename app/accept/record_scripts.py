"""What Redis does in one step with records and their jobs: the Lua scripts beside this module.

A record that holds a body, or the place of one, is all that leads to what was acknowledged, so it does not
expire; one without does.
"""

from pathlib import Path

from app.core.lifecycle import LIVE


def _read(name: str) -> str:
    return Path(__file__).with_name(f"{name}.lua").read_text()


_LIVE = ", ".join(f"{status} = true" for status in sorted(LIVE))

ENQUEUE = f"local LIVE = {{{_LIVE}}}\n{_read('enqueue')}"
"""What a script begins with that makes jobs: `enqueue`, and the statuses of jobs that RQ runs."""

ACCEPT = ENQUEUE + _read("accept")
MOVE = ENQUEUE + _read("move")
KEEP = _read("keep")
