import pytest

from app.core.lifecycle import MOVES, Move, State, origins, target

ENDED = [State.RECEIVED, State.STORED, State.DISPATCHED, State.FAILED]


def test_the_table_is_this() -> None:
    table = {
        Move.PROGRESS: (State.RUNNING, {None, State.RUNNING}),
        Move.FINISH: (State.RECEIVED, {None, State.RUNNING}),
        Move.STORE: (State.STORED, {State.RECEIVED, State.FAILED}),
        Move.DISPATCH: (State.DISPATCHED, {State.STORED}),
        Move.TELL: (State.STORED, {State.DISPATCHED}),
        Move.MEND: (State.DISPATCHED, {State.DISPATCHED}),
        Move.FAIL: (State.FAILED, {State.RECEIVED, State.STORED, State.FAILED}),
    }
    assert {move: (target(move), set(origins(move))) for move in Move} == table


@pytest.mark.parametrize("move", list(Move))
def test_each_move_has_exactly_one_target(move: Move) -> None:
    assert {to for (_, known), to in MOVES.items() if known is move} == {target(move)}
    assert len(origins(move)) == len(set(origins(move))) > 0


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("move", [Move.PROGRESS, Move.FINISH])
def test_what_has_ended_takes_no_more_news(state: State, move: Move) -> None:
    assert state not in origins(move)


def test_nothing_leads_back_to_running_or_to_received() -> None:
    for (state, _), to in MOVES.items():
        if to is State.RUNNING:
            assert state in (None, State.RUNNING)
        if to is State.RECEIVED:
            assert state in (None, State.RUNNING)


def test_only_what_arrives_makes_a_record() -> None:
    assert {move for state, move in MOVES if state is None} == {Move.PROGRESS, Move.FINISH}


def test_every_state_is_reached_and_every_end_can_still_be_dispatched() -> None:
    assert set(MOVES.values()) == set(State)
    for state in ENDED:
        reached = {state}
        for _ in State:
            reached |= {to for (origin, _), to in MOVES.items() if origin in reached}
        assert State.DISPATCHED in reached


def test_the_words_that_stand_in_redis_stay() -> None:
    assert [state.value for state in State] == ["running", "received", "stored", "dispatched", "failed"]
