"""Redis away for ten minutes under traffic; `OUTAGE` is another number of seconds."""

import os
from pathlib import Path

import pytest

from tests.app.own_valkey import own_valkey
from tests.e2e.outage import require_an_outage_loses_nothing

pytestmark = pytest.mark.soak


def test_ten_minutes_without_redis_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with own_valkey() as valkey:
        print(
            require_an_outage_loses_nothing(
                valkey, tmp_path, seconds=float(os.environ.get("OUTAGE", "600")), hangs=False
            )
        )
