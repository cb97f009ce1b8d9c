"""When a store that does not answer is left alone, by a clock of the test's."""

import pytest

from app.core.bucket_faults import NO_ANSWER
from app.core.errors import StorageFailure
from app.storage.store import PATIENCE, REST, SLOW, Silence


class Store:
    """Takes `seconds` for each answer, and gives none unless `answers`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = SLOW
        self.answers = False
        self.refusal = NO_ANSWER
        self.asked = 0
        self.silence = Silence(now=lambda: self.now)

    def ask(self) -> str | None:
        """The code of the error; None when it answered."""
        try:
            with self.silence.heeded():
                self._answer()
        except StorageFailure as error:
            return error.code
        return None

    def _answer(self) -> None:
        self.asked += 1
        self.now += self.seconds
        if not self.answers:
            raise StorageFailure(self.refusal, "no")


@pytest.fixture
def silent() -> Store:
    """A store for which nobody waits any more."""
    store = Store()
    assert [store.ask() for _ in range(PATIENCE + 1)] == [NO_ANSWER] * PATIENCE + ["storage_silent"]
    assert store.asked == PATIENCE
    return store


def test_after_a_rest_one_asks_for_all(silent: Store) -> None:
    for _ in range(3):
        silent.now += REST
        assert [silent.ask() for _ in range(3)] == [NO_ANSWER, "storage_silent", "storage_silent"]


def test_one_answer_ends_it(silent: Store) -> None:
    silent.now += REST
    silent.answers = True
    assert [silent.ask() for _ in range(3)] == [None] * 3


def test_a_quick_refusal_is_an_answer(silent: Store) -> None:
    silent.now += REST
    silent.seconds = SLOW / 2
    assert [silent.ask() for _ in range(100)] == [NO_ANSWER] * 100


def test_an_answer_in_between_counts() -> None:
    store = Store()
    for answers in (False, False, True) * 5:
        store.answers = answers
        assert store.ask() != "storage_silent"


def test_a_refusal_that_comes_late_is_an_answer_too() -> None:
    store = Store()
    store.refusal, store.seconds = "storage_denied", 60.0
    assert {store.ask() for _ in range(10)} == {"storage_denied"}
