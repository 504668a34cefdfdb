"""
What ``gwt bench`` says: percentiles, the figures of a run as a dict, a table of them, a bar.

The figures are what --json prints; docs/bench.md lists them, and the table is made of nothing else.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from io import StringIO
from types import TracebackType
from typing import Any, Self, TextIO

from ..client.benchmark import PERCENTILES

__all__ = ["Distribution", "Progress", "advice", "figures", "print_table"]

# From a microsecond to an hour, to three digits.
_LONGEST = 3_600_000_000
_DIGITS = 3

# From this fraction of a core on it is this process that cannot do more; or, from this fraction of
# timers that are late, this machine.
_BUSY = 0.9

# From this fraction of late timers on, the latencies are not the server's alone.
_NOTABLE = 0.5

# An open loop that got this much of its rate was held up by nothing else.
_AS_ASKED = 0.99


# Columns of a table where there is no terminal, and at least on one.
_WIDTH = 120
_NARROWEST = 60


class Distribution:
    """How often something took how long, in a histogram (HdrHistogram) of constant size."""

    def __init__(self) -> None:
        # Here, because nobody else is to wait for this import.
        from hdrh.histogram import HdrHistogram

        self._histogram = HdrHistogram(1, _LONGEST, _DIGITS)
        self._sum = 0

    def __len__(self) -> int:
        count: int = self._histogram.get_total_count()
        return count

    def add(self, nanoseconds: Iterable[int]) -> None:
        """Count times; many at once cost a tenth of a microsecond each."""
        record = self._histogram.record_value
        for time, count in Counter(each // 1000 for each in nanoseconds).items():
            time = min(max(time, 1), _LONGEST)
            record(time, count)
            self._sum += time * count

    def take(self, nanoseconds: list[int]) -> None:
        """Count the times in a list, and empty it."""
        if nanoseconds:
            self.add(nanoseconds)
            nanoseconds.clear()

    def milliseconds(self) -> dict[str, float | None]:
        """Return min, mean, percentiles and max in milliseconds; None where nothing was counted."""
        names = ["min", "mean", *PERCENTILES, "max"]
        if not len(self):
            return dict.fromkeys(names)
        histogram = self._histogram
        values = histogram.get_percentile_to_value_dict(list(PERCENTILES.values()))
        longest = histogram.get_max_value()
        micros = [
            histogram.get_min_value(),
            self._sum / len(self),
            *(min(values[share], longest) for share in PERCENTILES.values()),
            longest,
        ]
        return {name: round(each / 1000, 3) for name, each in zip(names, micros, strict=True)}


def figures(
    *,
    url: str,
    mode: str,
    clients: int,
    connected: int,
    ended: int,
    size: int,
    rate: float | None,
    connecting: float,
    duration: float,
    cpu: float,
    late: float,
    latency: Distribution,
    connects: Distribution,
    lateness: Distribution,
    lost: int,
    errors: dict[str, int],
    messages: dict[str, str],
    interrupted: bool,
) -> dict[str, Any]:
    """Return what was measured, as --json prints it; times in seconds unless named otherwise."""
    operations = len(latency)
    per_second = operations / duration if duration > 0 else 0.0
    moved = 0 if mode == "connect" else operations * size
    used = cpu / duration if duration > 0 else 0.0
    return {
        "url": url,
        "mode": mode,
        "clients": clients,
        "connected": connected,
        "ended_early": ended,
        "size": size,
        "duration": round(duration, 3),
        "connect_duration": round(connecting, 3),
        "operations": operations,
        "rate": round(per_second, 1),
        "target_rate": rate,
        "bytes": moved,
        "bytes_per_second": round(moved / duration, 1) if duration > 0 else 0.0,
        "lost": lost,
        "errors": dict(errors),
        "error_messages": dict(messages),
        "latency_ms": latency.milliseconds(),
        "connect_ms": connects.milliseconds(),
        "client_cpu": round(used, 3),
        "hub_late": round(late, 3),
        "hub_lateness_ms": lateness.milliseconds(),
        "limited_by": limit(used, late, per_second, rate),
        "interrupted": interrupted,
    }


def limit(cpu: float, late: float, rate: float, target: float | None) -> str:
    """Return what kept the rate from being higher, as far as that can be seen from here."""
    if cpu >= _BUSY or late >= _BUSY:
        return "client"
    if target is not None and rate >= target * _AS_ASKED:
        return "rate"
    return "server or network"


def advice(result: dict[str, Any]) -> str:
    """Return one line: what the limit was, and what to do about it."""
    share = f"{result['client_cpu']:.0%} of a core"
    match result["limited_by"]:
        case "client" if result["client_cpu"] >= _BUSY:
            return (
                f"The client was the limit: it used {share}. Run several gwt bench processes at "
                "once, on other machines if this one has no cores left, and add up their rates."
            )
        case "client":
            return (
                f"The client was the limit: it used {share}, and was late with "
                f"{result['hub_late']:.0%} of its timers. Others keep this machine busy: run gwt "
                "bench on another."
            )
        case "rate":
            return f"The rate that was asked for was reached; the client used {share}."
        case _:
            late = result["hub_late"]
            own = f" But {late:.0%} of its timers were late: some of the latency may be its own."
            return (
                f"The client was not the limit, it used {share}: the server, the network or the "
                f"number of clients was.{own if late >= _NOTABLE else ''}"
            )


def print_table(result: dict[str, Any], file: TextIO) -> None:
    """Print the figures for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    text = StringIO()
    console = Console(file=text, force_terminal=file.isatty(), highlight=False)
    # Without a terminal there is no width to keep to; a narrow one is to break the lines of the
    # table, and not its figures.
    console.width = max(console.width, _NARROWEST) if file.isatty() else _WIDTH

    def row(table: Table, name: str, *cells: str) -> None:
        table.add_row(Text(name, style="bold"), *(Text(each) for each in cells))

    facts = Table(box=None, show_header=False, pad_edge=False)
    partly = ", interrupted" if result["interrupted"] else ""
    size = "" if result["mode"] == "connect" else f" of {result['size']:,} bytes"
    row(facts, "url", result["url"])
    row(facts, "mode", f"{result['mode']}{size}, for {result['duration']:.1f} s{partly}")
    early = f", {result['ended_early']:,} ended early" if result["ended_early"] else ""
    row(
        facts,
        "clients",
        f"{result['connected']:,} of {result['clients']:,} connected in "
        f"{result['connect_duration']:.1f} s{early}",
    )
    asked = f" of {result['target_rate']:,.0f} asked for" if result["target_rate"] else ""
    row(facts, "operations", f"{result['operations']:,}, {result['rate']:,.1f} a second{asked}")
    if result["mode"] != "connect":
        row(
            facts,
            "throughput",
            f"{result['bytes_per_second'] / 1e6:,.3f} MB/s each way"
            if result["mode"] != "upload"
            else f"{result['bytes_per_second'] / 1e6:,.3f} MB/s",
        )
    if result["mode"] == "datagram":
        sent = result["operations"] + result["lost"]
        share = result["lost"] / sent if sent else 0.0
        row(facts, "lost", f"{result['lost']:,} ({share:.2%})")
    console.print(facts, soft_wrap=True)

    times = Table(box=None, pad_edge=False)
    names = [*PERCENTILES, "max"]
    times.add_column("ms", style="bold")
    for name in names:
        times.add_column(name, justify="right")
    for key, title in (("latency_ms", "latency"), ("connect_ms", "connect")):
        cells = [result[key][name] for name in names]
        row(times, title, *("-" if each is None else f"{each:,.3f}" for each in cells))
    console.print()
    console.print(times)

    if result["errors"]:
        errors = Table(box=None, pad_edge=False)
        errors.add_column("errors", justify="right", style="bold")
        errors.add_column("kind")
        errors.add_column("the first of them")
        for kind, count in sorted(result["errors"].items(), key=lambda item: -item[1]):
            row(errors, f"{count:,}", kind, result["error_messages"][kind])
        console.print()
        console.print(errors)
    if result["operations"]:
        console.print()
        console.print(advice(result), soft_wrap=True)
    file.write("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))
    file.flush()


class Progress:
    """A progress bar on stderr, if that is a terminal which can draw it; nothing otherwise."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            console = Console(file=sys.stderr)
            if console.is_dumb_terminal:
                return
            # Drawn when it is told to: a thread of its own would take time from the clients.
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[said]}"),
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, total: float) -> None:
        """Show another bar instead of the one there is."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total, said="")
            self._bar.refresh()

    def show(self, completed: float, said: str) -> None:
        """Draw the bar anew."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, said=said)
            self._bar.refresh()
