"""A greenlet for each client: code that waits like this is how thousands are at it at a time."""

import sys
import time

import gevent
from gevent.event import Event

import gwt

app = gwt.App()


@app.webtransport("/add")
def add(session):
    for stream in session:
        stream.write_all(b"%d" % sum(map(int, stream.read_all().split())))


def client(url, options, number, go):
    with gwt.connect(url, **options) as session:
        connected.append(session)
        go.wait()
        stream = session.create_bidirectional_stream()
        stream.write_all(b"%d 1" % number)
        return int(stream.read_all())


count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
connected = []
with gwt.Server(app, "127.0.0.1:0") as server:
    url = f"https://127.0.0.1:{server.address[1]}/add"
    options = {"server_certificate_hashes": [server.certificate_hash], "timeout": 60}
    go, began = Event(), time.monotonic()
    clients = [gevent.spawn(client, url, options, number, go) for number in range(count)]
    while len(connected) < count:
        gevent.sleep(0.01)
    print(len(server.sessions), "sessions are open")
    go.set()
    total = sum(each.get() for each in clients)
    print("the sum of their answers is", total)
    print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
