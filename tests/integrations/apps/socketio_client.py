"""A client of socketio_app, by python-socketio: socketio_client.py URL TRANSPORT..."""

import os
import sys
import time
import urllib.request

import socketio
from socketio.exceptions import ConnectionError

url, *transports = sys.argv[1:]
LIMIT = 10


def until(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connected(**options):
    client = socketio.SimpleClient()
    client.connect(url, transports=transports, wait_timeout=LIMIT, **options)
    until(lambda: client.transport == "websocket")
    return client


anna, bert = connected(), connected()
assert urllib.request.urlopen(url).read() == b"a page"

data = os.urandom(300_000)
for payload in ("text", {"a": [1, None]}, data, {"mixed": [b"binary", "text"]}):
    anna.emit("echo", payload)
    assert anna.receive(LIMIT) == ["echo", payload]
    assert anna.call("echo", payload, timeout=LIMIT) == ("acknowledged", payload)
    assert anna.receive(LIMIT) == ["echo", payload]

anna.client.on("question", lambda: "an answer", namespace="/")
anna.emit("ask")
assert anna.receive(LIMIT) == ["answered", "an answer"]

for client in (anna, bert):
    client.emit("join", "room")
    client.call("echo", "joined", timeout=LIMIT)
    assert client.receive(LIMIT) == ["echo", "joined"]
for number in range(100):
    anna.emit("say", ("room", number))
for client in (anna, bert):
    assert [client.receive(LIMIT) for _ in range(100)] == [["said", n] for n in range(100)]

try:
    connected(auth={"password": "wrong"})
except ConnectionError:
    pass
else:
    raise AssertionError("a wrong password was let in")

# Each side notices that the other leaves.
anna.emit("leave")
until(lambda: not anna.client.connected)
bert.disconnect()
print("done")
