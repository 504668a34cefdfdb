"""gwt.tracing: what SSLKEYLOGFILE and QLOGDIR make a client and a server write."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gevent
import gevent.subprocess
import pytest
from gevent import socket, ssl

import gwt
from gwt import certificates, tracing
from tests.helpers import eventually
from tests.helpers.live import connect, echo, pair, serving, url
from tests.helpers.pair import quic_options

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Only what a test asks for is written."""
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    monkeypatch.delenv("QLOGDIR", raising=False)
    return monkeypatch


def records(path):
    return [json.loads(record) for record in path.read_bytes().split(b"\x1e")[1:]]


def count(path, name):
    return Counter(record.get("name") for record in records(path))[f"transport:{name}"]


def converse(session):
    stream = session.create_bidirectional_stream()
    stream.write_all(bytes(100_000))
    assert len(stream.read_all(timeout=10)) == 100_000
    session.send_datagram(b"datagram")
    assert session.receive_datagram(timeout=5) == b"datagram"


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_is_traced_unless_it_is_asked_for(environment, value):
    if value is not None:
        environment.setenv("SSLKEYLOGFILE", value)
        environment.setenv("QLOGDIR", value)
    for config, is_client in ((gwt.ClientConfig(), True), (gwt.ServerConfig(), False)):
        made = tracing.configuration(quic_options(config, is_client=is_client))
        assert made.secrets_log_file is None and made.quic_logger is None
    with pair() as (client, server):
        for session in (client, server):
            assert session.connection.protocol.quic.trace is None


def test_client_and_server_write_the_secrets_of_a_connection(environment, tmp_path):
    file = tmp_path / "keys"
    environment.setenv("SSLKEYLOGFILE", str(file))
    with serving(echo) as server, connect(server) as session:
        converse(session)
        quic = session.connection.protocol.quic._quic
        random, exporter = quic.tls.client_random, quic.exporter.secret
        # Five lines from each side, written by greenlets while the connection goes on.
        lines = eventually(lambda: len(found := file.read_text().splitlines()) == 10 and found)
    # They agree.
    assert set(Counter(lines).values()) == {2}
    secrets = {label: secret for label, _, secret in map(str.split, lines)}
    assert set(secrets) == {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
        "EXPORTER_SECRET",
    }
    assert {line.split()[1] for line in lines} == {random.hex()}
    assert secrets["EXPORTER_SECRET"] == exporter.hex()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_secrets_are_appended_to_what_is_there(environment, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# a line of somebody else\n")
    environment.setenv("SSLKEYLOGFILE", str(file))
    with serving(echo) as server:
        for _ in range(2):
            connect(server).close()
    tracing.flush()
    lines = file.read_text().splitlines()
    assert lines[0] == "# a line of somebody else" and len(lines) == 21


def test_tls_over_tcp_appends_to_the_same_file(environment, tmp_path):
    cert, key = certificates.write(tmp_path, certificates.generate())
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    environment.setenv("SSLKEYLOGFILE", str(ours))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cert)
    context.keylog_filename = str(theirs)
    with serving(echo, certfile=cert, keyfile=key) as server:
        connection = socket.create_connection(server.address, timeout=5)
        with context.wrap_socket(connection, server_hostname="localhost") as secured:
            secured.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert secured.recv(100).startswith(b"HTTP/1.")
    secrets = [line for line in theirs.read_text().splitlines() if not line.startswith("#")]
    assert len(secrets) == 5
    assert set(secrets) <= set(ours.read_text().splitlines())
    assert stat.S_IMODE(ours.stat().st_mode) == 0o600


def test_every_connection_has_a_complete_file_at_each_end(environment, tmp_path):
    environment.setenv("QLOGDIR", str(tmp_path))
    connections = {"client": [], "server": []}

    def handler(session):
        connections["server"].append(session.connection)
        echo(session)

    with serving(handler) as server:
        for _ in range(2):
            with connect(server) as session:
                connections["client"].append(session.connection)
                converse(session)
        eventually(lambda: not server._udp.lingering)
    tracing.flush()
    assert len(list(tmp_path.iterdir())) == 4
    for role, ended in connections.items():
        files = sorted(tmp_path.glob(f"*_{role}.sqlog"))
        assert len(files) == 2
        told = sorted((count(f, "datagrams_sent"), count(f, "datagrams_received")) for f in files)
        stats = [connection.stats() for connection in ended]
        # QUIC may have looked at fewer than arrived: nothing is told of what comes after the end.
        assert [sent for sent, _ in told] == sorted(s["packets_sent"] for s in stats)
        assert sum(received for _, received in told) > 100
        for file in files:
            header, *events = records(file)
            assert header["trace"]["vantage_point"]["type"] == role
            assert file.name == f"{header['trace']['common_fields']['ODCID']}_{role}.sqlog"
            names = {event["name"] for event in events}
            assert names >= {
                "transport:packet_sent",
                "transport:packet_received",
                "transport:parameters_set",
                "http:frame_created",
                "http:frame_parsed",
                "security:key_retired",
                "recovery:metrics_updated",
            }
            assert [event["time"] for event in events] == sorted(e["time"] for e in events)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for client in tmp_path.glob("*_client.sqlog"):
        assert client.with_name(client.name.replace("client", "server")).exists()


def test_files_grow_while_a_connection_lives(environment, tmp_path):
    environment.setenv("QLOGDIR", str(tmp_path))
    with serving(echo) as server, connect(server) as session:
        converse(session)
        sent = session.connection.stats()["packets_sent"]
        (file,) = eventually(lambda: list(tmp_path.glob("*_client.sqlog")))
        eventually(lambda: count(file, "datagrams_sent") >= sent)


def test_a_process_that_ends_at_once_has_written_everything(environment, tmp_path):
    script = (
        "import sys, gwt\n"
        "session = gwt.connect(sys.argv[1], server_certificate_hashes=[sys.argv[2]])\n"
        "session.create_bidirectional_stream().write_all(bytes(5000))\n"
        "session.close()\n"
        "print(session.connection.stats()['packets_sent'])\n"
    )
    with serving(echo) as server:
        variables = {
            "PYTHONPATH": str(ROOT),
            "SSLKEYLOGFILE": str(tmp_path / "keys"),
            "QLOGDIR": str(tmp_path),
        }
        output = gevent.subprocess.check_output(
            [sys.executable, "-c", script, url(server), server.certificate_hash],
            env={**os.environ, **variables},
            timeout=20,
        )
    (file,) = tmp_path.glob("*.sqlog")
    assert count(file, "datagrams_sent") == int(output) > 5
    assert len((tmp_path / "keys").read_text().splitlines()) == 5


def test_what_cannot_be_written_is_said_once_and_harms_nobody(environment, tmp_path, caplog):
    (tmp_path / "file").touch()
    environment.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))
    environment.setenv("QLOGDIR", str(tmp_path / "file"))
    with serving(echo) as server:
        for _ in range(2):
            with connect(server) as session:
                converse(session)
                tracing.flush()
    tracing.flush()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert {record.name for record in errors} == {"gwt"}
    said = sorted(record.getMessage() for record in errors)
    assert len(said) == 2
    assert said[0].startswith(f"QLOGDIR={tmp_path}/file: [Errno 20] Not a directory")
    assert said[1].startswith(f"SSLKEYLOGFILE={tmp_path}/missing/keys: [Errno 2] No such file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_pipe_that_nobody_reads_is_an_error_and_not_a_wait(environment, tmp_path, caplog):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    environment.setenv("SSLKEYLOGFILE", str(pipe))
    with pair() as (client, server):
        assert client.is_ready and server.is_ready
    tracing.flush()
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "No such device or address" in error.getMessage()


def test_an_id_that_was_there_before_gets_a_file_of_its_own(environment, tmp_path):
    environment.setenv("QLOGDIR", str(tmp_path))
    made = tracing.configuration(quic_options(gwt.ServerConfig(), is_client=False))
    for _ in range(2):
        # The client chooses it.
        trace = made.quic_logger.start_trace(is_client=False, odcid=bytes(8))
        trace.log_event(category="test", event="event", data={})
        tracing.flush()
    first, second = sorted(tmp_path.iterdir(), key=lambda path: len(path.name))
    assert first.name == f"{'00' * 8}_server.sqlog"
    assert second.name.startswith(f"{'00' * 8}_server_")
    assert len(records(first)) == len(records(second)) == 2


def test_secrets_that_wait_are_bounded(environment, tmp_path):
    environment.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    log = tracing.configuration(quic_options(gwt.ServerConfig(), is_client=False)).secrets_log_file
    for number in range(10_000):
        log.write(f"{number}\n")
        log.flush()
    assert not (tmp_path / "keys").exists()
    tracing.flush()
    assert 1000 < len((tmp_path / "keys").read_text().splitlines()) < 10_000


def test_a_killed_writer_is_replaced(environment, tmp_path):
    environment.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    log = tracing.configuration(quic_options(gwt.ServerConfig(), is_client=False)).secrets_log_file
    log.write("one\n")
    log._writer.kill()
    log.write("two\n")
    eventually(lambda: (tmp_path / "keys").exists())
    assert (tmp_path / "keys").read_text() == "one\ntwo\n"


def test_the_interpreters_own_switch_turns_it_off(tmp_path):
    script = (
        "import gwt; from gwt import tracing; from tests.helpers.pair import quic_options\n"
        "made = tracing.configuration(quic_options(gwt.ClientConfig(), is_client=True))\n"
        "print(made.secrets_log_file, made.quic_logger)\n"
    )
    for switch, expected in (("-E", "None None\n"), ("-B", None)):
        output = subprocess.run(
            [
                sys.executable,
                switch,
                "-c",
                f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}",
            ],
            env={**os.environ, "SSLKEYLOGFILE": str(tmp_path / "keys"), "QLOGDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
        assert (output == "None None\n") == (expected is not None)
