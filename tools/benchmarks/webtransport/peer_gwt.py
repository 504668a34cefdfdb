"""gwt as a peer of the bench: its public API, as an application would use it."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
from answers import measure, reply
from control import arguments, chunk
from gevent.fileobject import FileObjectPosix
from gevent.pool import Group
from profiler import Profiler
from ticker import Ticker

import gwt

# What one write of a bulk transfer takes.
WRITE = 1024 * 1024


def commands() -> Iterator[dict[str, Any]]:
    with FileObjectPosix(sys.stdin.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            yield json.loads(line)


def answer_stream(stream: gwt.WebTransportStream) -> None:
    stream.write_all(stream.read_all())


def echo(session: gwt.WebTransportSession) -> None:
    def datagrams() -> None:
        with suppress(gwt.SessionClosed):
            for data in session.incoming_datagrams():
                session.send_datagram(data)

    gevent.spawn(datagrams)
    for stream in session:
        gevent.spawn(answer_stream, stream)


def download(session: gwt.WebTransportSession) -> None:
    for stream in session:
        send(stream, int(stream.read_all()))


def count(stream: gwt.WebTransportStream) -> None:
    stream.write_all(b"%d" % sum(len(data) for data in stream))


def upload(session: gwt.WebTransportSession) -> None:
    for stream in session:
        count(stream)


def sink(session: gwt.WebTransportSession) -> None:
    def count_until_closed(stream: gwt.WebTransportStream) -> None:
        with suppress(gwt.SessionClosed, gwt.StreamError):
            count(stream)

    for stream in session:
        gevent.spawn(count_until_closed, stream)


def send(stream: gwt.WebTransportStream, size: int) -> None:
    data = chunk(WRITE)
    for start in range(0, size, WRITE):
        stream.write(data[: size - start])
    stream.finish()


profiler = Profiler()


ticker = Ticker()


def answer(command: dict[str, Any]) -> dict[str, Any]:
    """Answer what a server and a client are both asked."""
    if command["do"] == "profile":
        profiler.command(command["file"])
    elif command["do"] == "ticker":
        ticker.start()
    elif command["do"] == "lateness":
        return ticker.stop()
    return measure(command["do"]) or {}


class Client:
    """The works, each over sessions that are open already."""

    def __init__(self, port: int, options: dict[str, Any]) -> None:
        self.address = "127.0.0.1", port
        self.url = f"https://127.0.0.1:{port}"
        self.options = options
        self.sessions: list[gwt.WebTransportSession] = []

    def connect(self, path: str) -> gwt.WebTransportSession:
        return gwt.connect(self.url + path, **self.options)

    def open(self, path: str, count: int) -> None:
        for _ in range(count):
            self.sessions.append(self.connect(path))

    def idle(self, count: int) -> None:
        for _ in range(count):
            self.sessions[0].create_bidirectional_stream().write(b".")

    def close(self) -> None:
        gevent.joinall([gevent.spawn(session.close) for session in self.sessions])
        self.sessions.clear()

    def download(self, size: int) -> int:
        stream = self.sessions[0].create_bidirectional_stream()
        stream.write_all(b"%d" % size)
        assert sum(len(data) for data in stream) == size
        return size // (1024 * 1024)

    def upload(self, size: int) -> int:
        stream = self.sessions[0].create_bidirectional_stream()
        send(stream, size)
        assert stream.read_all() == b"%d" % size
        return size // (1024 * 1024)

    def streams(self, count: int, at_once: int) -> int:
        session, data = self.sessions[0], chunk(64)

        def one_after_another() -> None:
            for _ in range(count // at_once):
                stream = session.create_bidirectional_stream()
                stream.write_all(data)
                assert stream.read_all() == data

        self._all(one_after_another, at_once)
        return count // at_once * at_once

    def datagrams(self, count: int, at_once: int) -> int:
        session, data = self.sessions[0], chunk(64)
        returned = sent = 0
        while returned < count:
            while sent < min(count, returned + at_once):
                session.send_datagram(data)
                sent += 1
            try:
                session.receive_datagram(timeout=1.0)
                returned += 1
            except TimeoutError:
                # Lost ones are sent again.
                sent = returned
        return count

    def connects(self, count: int, at_once: int) -> int:
        def one_after_another() -> None:
            for _ in range(count // at_once):
                self.connect("/echo").close()

        self._all(one_after_another, at_once)
        return count // at_once * at_once

    def flood(self, load: str, seconds: float) -> int:
        """Keep the server as busy as one client can with a load of LATENESS."""
        end = time.monotonic() + seconds
        times = 0

        def repeat(function: Callable[[], object]) -> None:
            nonlocal times
            while time.monotonic() < end:
                function()
                times += 1
                gevent.sleep(0)

        function, at_once = {
            "bulk": (self._echo_bulk, 2),
            "streams": (self._echo_stream, 100),
            "datagrams": (self._send_datagrams, 1),
            "packets": (self._send_packets, 1),
        }[load]
        self._all(lambda: repeat(function), at_once)
        return times

    def _echo_bulk(self) -> None:
        stream = self.sessions[0].create_bidirectional_stream()
        send(stream, 4 * WRITE)
        assert sum(len(data) for data in stream) == 4 * WRITE

    def _echo_stream(self) -> None:
        stream = self.sessions[0].create_bidirectional_stream()
        stream.write_all(chunk(64))
        assert stream.read_all() == chunk(64)

    def _send_datagrams(self) -> None:
        for _ in range(64):
            self.sessions[0].send_datagram(chunk(64))

    def _send_packets(self) -> None:
        # An Initial whose contents are noise, and a packet of a connection that there is not.
        initial = bytes([0xC0, 0, 0, 0, 1, 8]) + os.urandom(8) + bytes([0, 0, 0x44, 0x96])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            for _ in range(32):
                packets.sendto(initial.ljust(1200, b"\x55"), self.address)
                packets.sendto(bytes([0x40]) + os.urandom(40), self.address)

    def _all(self, function: Any, at_once: int) -> None:
        group = Group()
        for _ in range(at_once):
            group.spawn(function)
        group.join(raise_error=True)


def serve(certificate: str, payload: int, streams: int) -> None:
    app = gwt.App()
    for handler in (echo, download, upload, sink):
        app.webtransport(f"/{handler.__name__}")(handler)
    with gwt.Server(
        app,
        "127.0.0.1:0",
        certfile=certificate,
        max_udp_payload=payload,
        max_incoming_streams=streams,
        stop_timeout=1.0,
    ) as server:
        # As the command `gwt serve` does: what was imported is not walked again.
        gc.collect()
        gc.freeze()
        reply({"port": server.address[1]})
        for command in commands():
            reply(answer(command))


def run_client(port: int, payload: int) -> None:
    client = Client(port, {"verify": False, "max_udp_payload": payload})
    for command in commands():
        match command["do"]:
            case "open":
                client.open(command["path"], command["count"])
                reply({})
            case "idle":
                client.idle(command["count"])
                reply({})
            case "close":
                client.close()
                reply({})
            case "run":
                del command["do"]
                reply({"operations": getattr(client, command.pop("work"))(**command)})
            case _:
                reply(answer(command))


if __name__ == "__main__":
    options = arguments()
    if options.role == "server":
        serve(options.certificate, options.udp_payload, options.streams)
    else:
        run_client(options.port, options.udp_payload)
