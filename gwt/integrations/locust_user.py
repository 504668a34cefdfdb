"""
What locust.py's users share: one connection each, its loss, measuring, and greenlets beside them.

Nothing here knows which kind of connection it is.
"""

from __future__ import annotations

import copy
import logging
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock
from gevent.pool import Group

try:
    from locust import User
    from locust.exception import (
        InterruptTaskSet,
        RescheduleTask,
        RescheduleTaskImmediately,
        StopTest,
        StopUser,
    )
except ImportError as exc:
    raise ImportError(
        f"gwt.integrations.locust needs locust: pip install 'gwt[locust]' ({exc})."
    ) from exc

from ..client import connect
from ..errors import (
    ConcurrencyError,
    ConfigError,
    ConnectionClosed,
    GwtError,
    SessionClosed,
    WebSocketClosed,
)
from ..net.waiting import Deadline

__all__ = ["ConnectedUser", "Inbox", "Match", "RequestFailed", "size_of"]

logger = logging.getLogger("gwt")

Match = Callable[[Any], Any] | None

# How long a user that stops waits for its close to be answered.
_FAREWELL = 2.0

# What says where a task goes on, not that something failed.
_FLOW = (InterruptTaskSet, RescheduleTask, RescheduleTaskImmediately, StopTest, StopUser)


# What the end of a connection is told by.
_ENDS = (ConnectionClosed, SessionClosed, WebSocketClosed)


class RequestFailed(RescheduleTask):
    """
    Raised by what a user does when it failed, and is in the statistics; ``exception`` is why.

    A task that does not catch it ends, and the user goes on with its next one: it is a
    RescheduleTask of Locust's.
    """

    def __init__(self, exception: Exception) -> None:
        super().__init__(str(exception))
        self.exception = exception


class ConnectedUser(User):
    """A Locust user with one connection, which is made again when it was lost."""

    abstract = True

    path: str | None = None
    """Where to connect on its own: a path at ``host``, or a URL; None: connect() says."""

    connect_options: Mapping[str, Any] = {}
    """Options of gwt.connect: verify, server_certificate_hashes, headers, subprotocols, ..."""

    timeout: float = 10.0
    """How long replies are waited for, in seconds."""

    reconnect_delay: float = 1.0
    """How long a user waits before it connects again, in seconds, give or take half of that."""

    # Of each kind: its connect in the statistics, and the schemes it has for others.
    request_type: ClassVar[str]
    schemes: ClassVar[Mapping[str, str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hidden = [
            name
            for name, value in vars(cls).items()
            if hasattr(value, "locust_task_weight")
            and not hasattr(getattr(super(cls, cls), name, value), "locust_task_weight")
        ]
        if hidden:
            raise TypeError(
                f"{cls.__name__}'s task {hidden[0]}() hides the method of that name: call it "
                "otherwise."
            )

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)

        # Readers and the like; they do not outlive the user.
        self.children = Group()
        self._connection: Any = None
        self._connecting = RLock()

        # Where to connect, again too; by which URL and name; and whether that was just in vain.
        self._target: tuple[str, str | None, dict[str, Any]] | None = None
        self._url = ""
        self._name = type(self).__name__
        self._hold = False

    # Life

    def start(self, group: Group) -> Any:
        greenlet = super().start(group)
        greenlet.rawlink(self._ended)
        return greenlet

    def on_start(self) -> None:
        """Connect, if there is a ``path``; what fails is tried again by whatever needs it."""
        if self.path is not None:
            with suppress(RequestFailed):
                self.ready(closed=False)

    def on_stop(self) -> None:
        """End the greenlets beside the user, and close its connection; waits for that."""
        self.children.kill()
        self.disconnect()

    def _ended(self, _: object) -> None:
        # However it ended: by an exception, or with an on_stop() that forgot about ours.
        self.children.kill(block=False)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    # Connecting

    def connect(self, path: str | None = None, *, name: str | None = None, **options: Any) -> Any:
        """
        Connect, and return the WebSocket or session; a WS or WT of the statistics.

        To `path` at the user's host, or a URL, else to ``path``; a former connection is closed. The
        name, else the path without its query, is also that of all that is done on the connection.
        `options` are those of gwt.connect beside ``connect_options``. Waits at most the option
        `timeout`; once a connect failed, or the connection was lost, first some reconnect_delay.
        Raises RequestFailed.
        """
        where = self.path if path is None else path
        if where is None:
            raise ConfigError(
                f"{type(self).__name__} does not know where to connect: set path, or call "
                "connect(path).",
                field="path",
            )
        with self._connecting:
            self.disconnect()
            self._target = (where, name, options)
            return self._connect()

    def _connect(self) -> Any:
        assert self._target is not None
        path, name, options = self._target
        if self._hold:
            gevent.sleep(self.reconnect_delay * random.uniform(0.5, 1.5))
        self._url = self.url_of(path)
        self._name = name or path.partition("?")[0]
        self._hold = True
        with self.measure(self.request_type) as meta:
            connection = connect(self._url, **{**self.connect_options, **options})
            # At once: what listens to Locust's events may stop the user.
            self._connection = meta["response"] = connection
        self.listen(connection)
        try:
            self.on_connect()
        except BaseException:
            self.disconnect()
            raise
        self._hold = False
        return connection

    def on_connect(self) -> None:
        """Override it to do what each connection begins with, as a login."""

    def disconnect(self) -> None:
        """Close the connection, if there is one; waits for the server's answer, up to 2 s."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close(timeout=_FAREWELL)
            except BaseException:
                connection.abort()
                raise

    def url_of(self, path: str) -> str:
        """Return the URL of a path at the user's host, with a scheme of this kind."""
        url = path
        if "://" not in path:
            if not self.host:
                raise ConfigError(
                    f"{type(self).__name__} has no host: set host, or give --host.", field="host"
                )
            url = f"{self.host.rstrip('/')}/{path.lstrip('/')}"
        scheme, separator, rest = url.partition("://")
        return self.schemes.get(scheme.lower(), scheme) + separator + rest

    def ready(self, *, closed: bool = True) -> Any:
        """
        Return the connection; where there is none, connects as the last time, else to ``path``.

        One that was lost meanwhile is returned, since what is done on it shall fail; not with
        `closed` False. Waits and raises as connect().
        """
        connection = self._connection
        if connection is None or (connection.is_closed and not closed):
            with self._connecting:
                # Unless another greenlet of the user's has done it meanwhile.
                connection = self._connection
                if connection is not None and connection.is_closed:
                    self.forget(connection)
                if self._connection is None:
                    return self.connect() if self._target is None else self._connect()
                connection = self._connection
        return connection

    def forget(self, connection: Any) -> None:
        """The connection is lost: connect again, after a pause, when one is needed."""
        if connection is self._connection:
            self._connection = None
            self._hold = True

    # Measuring

    def limit(self, timeout: float | None) -> float:
        """Return a timeout in seconds: the user's unless one is given."""
        return self.timeout if timeout is None else timeout

    @contextmanager
    def measure(self, request_type: str, name: str | None = None) -> Iterator[dict[str, Any]]:
        """
        Measure the block as one request of the statistics; an exception makes it a failure.

        Yields what will be reported: set "response_length" in bytes, "response", "exception".
        Errors of gwt's and of the system are raised as RequestFailed, all others again as they
        were; a gevent.Timeout is a failure, too. Nothing is reported for a user that is killed.
        """
        meta: dict[str, Any] = {"response": None, "response_length": 0, "exception": None}
        start_time, began = time.time(), time.perf_counter()
        raised: BaseException | None = None
        try:
            yield meta
        except gevent.Timeout as exc:
            raised, meta["exception"] = exc, TimeoutError("interrupted by a gevent.Timeout")
        except RequestFailed as exc:
            raised, meta["exception"] = exc, exc.exception
        except _FLOW:
            raise
        except Exception as exc:
            # Boundary to user code: whatever it is, Locust's users look for it in the statistics.
            raised = meta["exception"] = exc
        self.record(
            request_type, name, (time.perf_counter() - began) * 1000, start_time=start_time, **meta
        )
        if raised is None:
            return
        connection = self._connection
        if connection is not None and (connection.is_closed or isinstance(raised, _ENDS)):
            self.give_up(connection)
        if isinstance(raised, (GwtError, OSError)) and not isinstance(
            raised, (ConfigError, ConcurrencyError)
        ):
            raise RequestFailed(raised) from raised
        raise raised

    def record(
        self,
        request_type: str,
        name: str | None = None,
        response_time: float | None = None,
        response_length: int = 0,
        exception: Exception | str | None = None,
        **details: Any,
    ) -> None:
        """
        Report one request to Locust's statistics, a failure if there is an exception.

        Times are in milliseconds, lengths in bytes; without a time it is counted only. The name is
        the connection's unless given, `details` are more arguments of Locust's request event.
        """
        if isinstance(exception, Exception):
            exception = _steady(exception)
        self.environment.events.request.fire(
            request_type=request_type,
            name=name or self._name,
            response_time=response_time,
            response_length=response_length,
            exception=exception,
            context=self.context(),
            url=self._url,
            **details,
        )

    # The greenlets beside the user

    def listen(self, connection: Any) -> None:
        """Start what reads from a new connection, in ``children``."""
        raise NotImplementedError

    def give_up(self, connection: Any) -> None:
        """End the connection without waiting, and forget it."""
        raise NotImplementedError

    def lost(self, connection: Any, error: Exception, *, good: bool) -> None:
        """Called by a reader at the end: a failure, unless it was good, or others noticed."""
        # Those in the middle of something go first: it is their failure then.
        gevent.sleep(0)
        if connection is self._connection:
            self.forget(connection)
            if not good:
                self.record(f"{self.request_type}R", exception=error)

    def call_hook(self, hook: Callable[[Any], Any] | None, value: Any) -> None:
        """Call a method of the user's that is given what the server sends."""
        assert hook is not None
        try:
            hook(value)
        except (StopUser, StopTest) as exc:
            self.greenlet.kill(exc, block=False)
        except _FLOW:
            # As in a task: the rest is left out.
            pass
        except Exception as exc:
            # Boundary to user code: reported as Locust does what a task raises.
            connection = self._connection
            if not isinstance(exc, (GwtError, OSError)):
                logger.error("%s\n%s", exc, traceback.format_exc())
                self.environment.events.user_error.fire(
                    user_instance=self, exception=exc, tb=exc.__traceback__
                )
            elif connection is not None and not connection.is_closed:
                self.record(f"{self.request_type}R", exception=exc)


class Inbox:
    """Where a reader leaves what somebody waits for; the rest is for its hook."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Match, AsyncResult]] = []

    def wait(self, match: Match, deadline: Deadline, send: Callable[[], None] | None = None) -> Any:
        """Return the first message that matches, once `send` was called; raises TimeoutError."""
        result = AsyncResult()
        entry = (match, result)
        self._waiting.append(entry)
        try:
            if send is not None:
                send()
            result.wait(deadline.remaining())
            if not result.ready():
                raise TimeoutError(f"no message came within {deadline.timeout:g} s")
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
        return result.get()

    def take(self, message: Any) -> bool:
        """Give a message to whoever waits for it; returns whether there is one."""
        for entry in list(self._waiting):
            match, result = entry
            failure = None
            try:
                if match is not None and not match(message):
                    continue
            except Exception as exc:
                # Boundary to user code: of the one that waits.
                failure = exc
            if entry in self._waiting:
                self._waiting.remove(entry)
                if failure is None:
                    result.set(message)
                else:
                    result.set_exception(failure)
                return True
        return False

    def fail(self, error: GwtError) -> None:
        """Raise an error to everybody who waits."""
        waiting, self._waiting = self._waiting, []
        for _, result in waiting:
            result.set_exception(copy.copy(error))


def size_of(message: str | bytes) -> int:
    """Return the bytes of a message."""
    if isinstance(message, str) and not message.isascii():
        return len(message.encode())
    return len(message)


# What differs from one failure to the next of the same kind.
_CHANGING = (
    (re.compile(r"^Connecting to \S+ timed out"), "Connecting timed out"),
    (re.compile(r", \d+\.\d s of them queued"), ""),
    (re.compile(r"\b\d+( of \d+)? bytes"), "some bytes"),
)


def _steady(error: Exception) -> Exception:
    """Return an error that reads alike for all failures alike: Locust groups them by their text."""
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return error
    text = error.args[0]
    for pattern, instead in _CHANGING:
        text = pattern.sub(instead, text)
    if text == error.args[0]:
        return error
    twin = copy.copy(error)
    twin.args = (text,)
    twin.__cause__ = error
    return twin
