"""
A line on a terminal that can be edited while other lines appear above it, and its history.

prompt_toolkit does both, in the hub's asyncio loop (net/aioloop.py): a greenlet reads, others show.
It is imported here alone, when there is a terminal to use it on.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import termios
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from gevent.event import Event

from ..net import aioloop
from ..net.waiting import Signal
from .stdio import STDIN, STDOUT

__all__ = ["Prompt", "colours", "history_file", "is_usable", "load_history", "save_history"]

# Lines, and bytes, that are kept of the history. The file may grow to twice as much meanwhile.
_MOST_LINES = 1000
_MOST_BYTES = 256 * 1024

# Characters that may wait to be shown until whoever shows more waits, too.
_MOST_PENDING = 16 * 1024

# How long the terminal may take to be given back.
_PARTING = 1.0

_MARKS = {"< ": "\x1b[36m", "! ": "\x1b[33m", "": "\x1b[35m"}
_PLAIN = "\x1b[0m"


def is_usable() -> bool:
    """Tell whether both ends are terminals, and not of the kind that can only print."""
    dumb = os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")
    return os.isatty(STDIN) and os.isatty(STDOUT) and not dumb


def colours() -> bool:
    """Tell whether colours are wanted (no-color.org)."""
    return not os.environ.get("NO_COLOR")


class Prompt:
    """The terminal, until close(): read() waits for a line, show() prints above it."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.input.vt100 import Vt100Input
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.output.vt100 import Vt100_Output

        self._file = history_file()
        known = load_history(self._file)
        self._last = known[-1] if known else ""
        self._coloured = colours()
        depth = ColorDepth.DEPTH_4_BIT if self._coloured else ColorDepth.DEPTH_1_BIT
        # The terminal is asked for nothing: one that does not answer would be waited for.
        self._output: Any = Vt100_Output.from_pty(sys.stdout, os.environ.get("TERM"), depth, False)
        self._output.enable_cpr = False

        class _RawInput(Vt100Input):
            # What is typed while something is shown is not to appear in the middle of it.
            def cooked_mode(self) -> AbstractContextManager[None]:
                return nullcontext()

        self._session: Any = PromptSession(
            [("bold", "> ")],
            history=InMemoryHistory(known),
            input=_RawInput(sys.stdin),
            output=self._output,
            color_depth=depth,
            reserve_space_for_menu=0,
            complete_while_typing=False,
            enable_suspend=True,
            interrupt_exception=_Interrupted,
        )
        self._reading: asyncio.Task[str] | None = None
        self._printing: asyncio.Task[None] | None = None
        self._pending: list[str] = []
        self._room = Signal()
        self._settings = termios.tcgetattr(STDIN)
        self._silence()
        self._loop = aioloop.borrow()

    def _silence(self) -> None:
        """Keep what is typed while nobody reads for whoever does next; Ctrl-C is a signal then."""
        settings = termios.tcgetattr(STDIN)
        settings[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(STDIN, termios.TCSANOW, settings)

    def read(self) -> str | None:
        """Return the line that is typed next; None for Ctrl-D. Ctrl-C is KeyboardInterrupt."""
        done = Event()
        self._reading = task = self._loop.create_task(
            self._session.prompt_async(handle_sigint=False, set_exception_handler=False)
        )
        task.add_done_callback(lambda _: done.set())
        done.wait()
        try:
            line: str = task.result()
        except _Interrupted:
            raise KeyboardInterrupt from None
        except (EOFError, OSError, termios.error):
            # Ctrl-D, or a terminal that is gone.
            return None
        if line and line != self._last:
            self._last = line
            save_history(self._file, line)
        return line

    def show(self, mark: str, text: str) -> None:
        """Print a text, in whole lines, above what is being typed; waits for a slow terminal."""
        if mark and self._coloured:
            mark = f"{_MARKS.get(mark, _MARKS[''])}{mark}{_PLAIN}"
        self._pending.append(mark + text)
        if self._printing is None:
            self._printing = self._loop.create_task(self._print())
        while sum(map(len, self._pending)) > _MOST_PENDING:
            self._room.wait()

    async def _print(self) -> None:
        from prompt_toolkit.application import run_in_terminal

        try:
            while self._pending:
                # What comes in the same turn of the hub is one picture.
                await asyncio.sleep(0)
                await run_in_terminal(self._write_pending)
        finally:
            # Empty, unless the terminal is gone.
            self._pending.clear()
            self._printing = None
            self._room.notify()

    def _write_pending(self) -> None:
        text, self._pending = "".join(self._pending), []
        self._room.notify()
        # A terminal that is gone: read() finds out, too.
        with suppress(OSError):
            self._output.write_raw(text)
            self._output.flush()

    def close(self) -> None:
        """Give the terminal back as it was, once all is shown; a second at most."""
        try:
            if self._printing is not None:
                self._wait(self._printing)
            for task in (self._reading, self._printing):
                if task is not None and not task.done():
                    task.cancel()
                    self._wait(task)
            self._loop.give_back()
            self._loop.join()
        finally:
            with suppress(termios.error):
                termios.tcsetattr(STDIN, termios.TCSADRAIN, self._settings)

    def _wait(self, task: asyncio.Task[Any]) -> None:
        done = Event()
        task.add_done_callback(lambda _: done.set())
        done.wait(_PARTING)


class _Interrupted(Exception):
    """Ctrl-C. asyncio would not keep a KeyboardInterrupt to itself."""


# History: a file of lines, the newest last. It is a convenience: what goes wrong with it is not
# worth a word.


def history_file() -> Path | None:
    """Return where the history is (XDG Base Directory Specification), None if there is no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return base / "gwt" / "connect_history"


def load_history(path: Path | None) -> list[str]:
    """Return the lines of the file, the newest last; shortens a file that has grown too long."""
    if path is None:
        return []
    try:
        data, shortened = _read(path)
    except OSError:
        return []
    lines = [line for line in data.decode(errors="replace").split("\n") if line]
    kept = lines[-_MOST_LINES:]
    if shortened or len(lines) > 2 * _MOST_LINES:
        with suppress(OSError):
            _replace(path, "".join(f"{line}\n" for line in kept).encode())
    return kept


def _opened(path: Path, flags: int) -> int:
    """Return a descriptor of a regular file, which nobody else may read when we have made it."""
    # A pipe of that name would be waited for.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no regular file")
    return descriptor


def _read(path: Path) -> tuple[bytes, bool]:
    """Return the end of the file, and whether that is not all."""
    with open(_opened(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= 2 * _MOST_BYTES:
            return file.read(2 * _MOST_BYTES), False
        file.seek(-_MOST_BYTES, os.SEEK_END)
        return file.read(_MOST_BYTES).partition(b"\n")[2], True


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with open(_opened(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)
    os.replace(fresh, path)


def save_history(path: Path | None, line: str) -> None:
    """Append a line, for nobody else to read; one that was pasted as several is not kept."""
    if path is None or "\n" in line or len(line) > _MOST_BYTES // 4:
        return
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open(descriptor, "ab", buffering=0) as file:
            os.fchmod(descriptor, 0o600)
            # One write, so that lines of several of us stay whole.
            file.write(f"{line}\n".encode(errors="replace"))
