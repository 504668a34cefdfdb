"""The exception tree: the bases that callers catch by, the sentences, what each one carries."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle

import pytest

from gwt import errors

# Every class of the public contract: how to make one, its bases, what it carries.
TREE = [
    (lambda: errors.GwtError("It failed."), (Exception,), {}),
    (
        lambda: errors.ConfigError("It is wrong.", field="days", value=-1),
        (errors.GwtError, ValueError),
        {"field": "days", "value": -1},
    ),
    (
        lambda: errors.UnknownOption("It is unknown.", field="dayz", value=1),
        (errors.ConfigError, TypeError),
        {"field": "dayz", "value": 1},
    ),
    (lambda: errors.ProtocolError("It broke.", code=3), (errors.GwtError,), {"code": 3}),
    (
        lambda: errors.LocalProtocolError("We broke it.", code=4),
        (errors.ProtocolError,),
        {"code": 4},
    ),
    (
        lambda: errors.RemoteProtocolError("They broke it.", code=5),
        (errors.ProtocolError,),
        {"code": 5},
    ),
    (
        lambda: errors.ConnectionClosed(7, "enough", True),
        (errors.GwtError, builtins.ConnectionError),
        {"code": 7, "reason": "enough", "remote": True},
    ),
    (
        lambda: errors.HandshakeError("No answer came.", stage="resolve"),
        (errors.GwtError, builtins.ConnectionError),
        {"stage": "resolve"},
    ),
    (
        lambda: errors.SessionRejected(403, {"server": "x"}),
        (errors.HandshakeError,),
        {"status": 403, "headers": {"server": "x"}, "stage": "webtransport"},
    ),
    (
        lambda: errors.RequirementsNotMet("A setting is missing."),
        (errors.HandshakeError,),
        {"stage": "http3"},
    ),
    (
        lambda: errors.CertificateError("It expired."),
        (errors.HandshakeError,),
        {"stage": "tls"},
    ),
    (
        lambda: errors.SessionError("It is over.", session_id="s1"),
        (errors.GwtError, OSError),
        {"session_id": "s1"},
    ),
    (
        lambda: errors.SessionClosed(9, "bye", True, session_id="s2"),
        (errors.SessionError,),
        {"code": 9, "reason": "bye", "remote": True, "session_id": "s2"},
    ),
    (
        lambda: errors.StreamError("It is over.", stream_id=4),
        (errors.GwtError, OSError),
        {"stream_id": 4},
    ),
    (
        lambda: errors.StreamReset(33, True, stream_id=8),
        (errors.StreamError,),
        {"code": 33, "remote": True, "stream_id": 8},
    ),
    (
        lambda: errors.StreamStopped(34, stream_id=12),
        (errors.StreamError,),
        {"code": 34, "stream_id": 12},
    ),
    (
        lambda: errors.IncompleteRead(b"ab", stream_id=16),
        (errors.StreamError, EOFError),
        {"partial": b"ab", "stream_id": 16},
    ),
    (
        lambda: errors.WebSocketClosed(1006),
        (errors.GwtError, OSError),
        {"code": 1006, "reason": "", "rcvd": False, "sent": False},
    ),
    (
        lambda: errors.WebSocketClosedOK(1000, "done", rcvd=True, sent=True),
        (errors.WebSocketClosed,),
        {"code": 1000, "reason": "done", "rcvd": True, "sent": True},
    ),
    (
        lambda: errors.WebSocketClosedError(1011, "oops", sent=True),
        (errors.WebSocketClosed,),
        {"code": 1011, "reason": "oops", "rcvd": False, "sent": True},
    ),
    (lambda: errors.LimitExceeded("It is full.", limit=3), (errors.GwtError,), {"limit": 3}),
    (
        lambda: errors.DatagramTooLarge(2000, 1100),
        (errors.LimitExceeded,),
        {"size": 2000, "limit": 1100},
    ),
    (
        lambda: errors.MessageTooLarge("It is too long.", limit=10),
        (errors.LimitExceeded,),
        {"limit": 10},
    ),
    (
        lambda: errors.ApplicationClosed("It is gone.", limit=5),
        (errors.LimitExceeded,),
        {"limit": 5},
    ),
    (
        lambda: errors.TooManyConnections("It is full.", limit=1),
        (errors.LimitExceeded, builtins.ConnectionError),
        {"limit": 1},
    ),
    (
        lambda: errors.TooManySessions("It is full.", limit=1),
        (errors.LimitExceeded, errors.SessionError),
        {"limit": 1, "session_id": None},
    ),
    (
        lambda: errors.TooManyStreams("It is full.", limit=1),
        (errors.LimitExceeded, errors.StreamError),
        {"limit": 1, "stream_id": None},
    ),
    (
        lambda: errors.PoolExhausted("All are in use.", limit=1),
        (errors.LimitExceeded, TimeoutError),
        {"limit": 1},
    ),
    (
        lambda: errors.ConcurrencyError("Another greenlet reads."),
        (errors.GwtError, RuntimeError),
        {},
    ),
    (
        lambda: errors.ClientError("It failed.", target_url="https://example.org/"),
        (errors.GwtError,),
        {"target_url": "https://example.org/"},
    ),
    (
        lambda: errors.ClientTimeout("It took too long.", target_url="https://example.org/"),
        (errors.ClientError, TimeoutError),
        {"target_url": "https://example.org/"},
    ),
    (
        lambda: errors.Reject(401, {"www-authenticate": "Basic"}, b"no"),
        (errors.GwtError,),
        {"status": 401, "headers": [("www-authenticate", "Basic")], "body": b"no"},
    ),
]

NAMES = [type(make()).__name__ for make, _, _ in TREE]


@pytest.mark.parametrize(("make", "bases", "carried"), TREE, ids=NAMES)
def test_error_has_its_bases_its_sentence_and_what_it_carries(make, bases, carried):
    error = make()
    for base in (errors.GwtError, *bases):
        if type(error) is not errors.GwtError or base is not errors.GwtError:
            assert isinstance(error, base)
    text = str(error)
    assert text[0].isupper()
    assert text.endswith(".")
    assert {name: getattr(error, name) for name in carried} == carried


def test_the_table_is_complete():
    classes = {each for each in vars(errors).values() if inspect.isclass(each)}
    public = {each.__name__ for each in classes if issubclass(each, Exception)}
    assert public == set(NAMES)
    assert {getattr(errors, name) for name in errors.__all__} <= classes
    assert set(NAMES) <= set(errors.__all__)


def test_older_names_are_the_same_classes():
    assert errors.ConfigurationError is errors.ConfigError
    assert errors.WebSocketError is errors.WebSocketClosed


def test_no_class_shadows_a_builtin():
    assert not [name for name in errors.__all__ if hasattr(builtins, name)]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ConnectionClosed(), "The connection was closed locally without a code."),
        (
            errors.ConnectionClosed(0x10C, "idle", True),
            "The connection was closed by the peer with code 268: idle.",
        ),
        (errors.SessionClosed(), "The session was closed locally with code 0."),
        (
            errors.SessionClosed(4, "bye", True),
            "The session was closed by the peer with code 4: bye.",
        ),
        (errors.StreamReset(33), "The stream was reset by the peer with code 33."),
        (errors.StreamReset(None, False), "The stream was reset locally without a code."),
        (errors.StreamStopped(34), "The peer stopped reading the stream with code 34."),
        (errors.IncompleteRead(b"abc"), "The stream ended after 3 bytes of an unfinished read."),
        (
            errors.DatagramTooLarge(2000, 1100),
            "A datagram of 2000 bytes is too large: at most 1100 bytes fit.",
        ),
        (errors.SessionRejected(404), "The server rejected the session with HTTP status 404."),
        (
            errors.WebSocketClosed(1006),
            "The WebSocket was closed without a close frame with code 1006.",
        ),
    ],
)
def test_sentences_say_what_happened_who_did_it_code_and_reason(error, text):
    assert str(error) == text


@pytest.mark.parametrize("make", [make for make, _, _ in TREE], ids=NAMES)
def test_an_os_error_keeps_its_sentence_and_claims_no_errno(make):
    error = make()
    if isinstance(error, OSError):
        assert error.errno is None
    assert error.args == (str(error),)


class _Own(errors.SessionRejected):
    """What a user's subclass may look like."""

    def __init__(self, room: str) -> None:
        super().__init__(403, {"room": room})
        self.room = room


@pytest.mark.parametrize(
    "through",
    [
        lambda error: pickle.loads(pickle.dumps(error)),
        lambda error: pickle.loads(pickle.dumps(error, protocol=0)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle", "old pickle", "copy", "deepcopy"],
)
@pytest.mark.parametrize(
    "make", [*(make for make, _, _ in TREE), lambda: _Own("lobby")], ids=[*NAMES, "_Own"]
)
def test_errors_can_go_to_another_process(make, through):
    error = make()
    error.add_note("seen by worker 3")
    found = through(error)
    assert type(found) is type(error)
    assert (str(found), found.args) == (str(error), error.args)
    assert found.__dict__ == error.__dict__
    assert found is not error
