"""SessionManager: its limit, its ids, and sessions by state."""

from __future__ import annotations

import enum
import inspect

import pytest

from gwt.errors import SessionError, TooManySessions
from gwt.manager import SessionManager

from .fakes import FakeMember


class State(enum.Enum):
    CONNECTED = "connected"
    DRAINING = "draining"


def test_defaults_are_those_of_the_original() -> None:
    parameters = inspect.signature(SessionManager).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "max_sessions": 10000,
        "session_cleanup_interval": 60.0,
    }


def test_over_the_limit_is_refused_until_a_session_ends() -> None:
    with SessionManager(max_sessions=1) as manager:
        first, second = FakeMember("1"), FakeMember("2")
        assert manager.add_session(first) == "1"
        with pytest.raises(TooManySessions) as caught:
            manager.add_session(second)
        assert str(caught.value) == "Maximum sessions (1) exceeded"
        assert isinstance(caught.value, SessionError)
        first.end()
        assert manager.add_session(second) == "2"
        assert manager.get_stats()["max_sessions"] == 1


def test_a_session_is_known_by_session_id_or_else_by_id() -> None:
    with SessionManager() as manager:
        both, only_id = FakeMember("id"), FakeMember("only id")
        both.session_id = "session id"
        del only_id.session_id
        assert manager.add_session(both) == "session id"
        assert manager.add_session(only_id) == "only id"


def test_sessions_are_found_by_an_enum_or_its_text() -> None:
    manager = SessionManager()
    assert manager.get_sessions_by_state("connected") == []
    with manager:
        one = FakeMember("1", state=State.CONNECTED)
        two = FakeMember("2", state="connected")
        three = FakeMember("3", state=State.DRAINING)
        for session in (one, two, three):
            manager.add_session(session)
        assert manager.get_sessions_by_state(State.CONNECTED) == [one, two]
        assert manager.get_sessions_by_state("connected") == [one, two]
        assert manager.get_sessions_by_state(state=State.DRAINING) == [three]
        assert manager.get_sessions_by_state("closed") == []
        assert manager.get_stats()["states"] == {"connected": 2, "draining": 1}
