"""Two thousand clients in one room: each says one word, and what is said there goes to all."""

import logging
import sys

import gevent

import gwt

app = gwt.App()
manager = gwt.WebSocketManager(idle_timeout=60)


@app.websocket("/ws")
def member(ws):
    manager.join_room(manager.add(ws), "hall")
    for message in ws:
        manager.broadcast_to_room("hall", message)


def listen(ws):
    for message in ws:
        heard.append(message)


count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
logging.basicConfig(level=logging.WARNING)
heard = []
clients = gwt.WebSocketManager()
with manager, gwt.Server(app, "127.0.0.1:0", http3=False, max_handlers=count) as server:
    url = "ws://{}:{}/ws".format(*server.address)
    clients.start()
    try:
        for _ in range(count):
            clients.track(gwt.connect(url), listen)
        while len(manager) < count:
            gevent.sleep(0.01)
        print(f"{len(clients)} clients are connected")

        result = manager.broadcast_to_room("hall", "welcome")
        print(f"welcome: sent {result.sent}, dropped {result.dropped}, closed {result.closed}")
        next(iter(clients)).send("hello")
        while len(heard) < 2 * count:
            gevent.sleep(0.01)
        print("all have heard", " and ".join(sorted(set(heard))))
    finally:
        clients.close_all()
        clients.stop()
        clients.join()
    print(f"{len(clients)} clients are left")
