from pathlib import Path

import pytest
from redis import Redis

from tests.keep.desk import Desk


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    return Desk(redis, tmp_path)
