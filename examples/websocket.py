"""One server, two routes for WebSockets, and a client that talks to both."""

import gevent

import gwt

app = gwt.App()


@app.websocket("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


@app.websocket("/ticks/<int:count>")
def ticks(ws, count):
    # It never receives: the client's pings, and its close, are seen all the same.
    for number in range(count):
        ws.send(f"tick {number}")
        gevent.sleep(0.01)


with gwt.Server(app, "127.0.0.1:0") as server:
    host, port = server.address

    with gwt.connect(f"ws://{host}:{port}/echo") as ws:
        ws.send("text stays text")
        print(ws.recv(timeout=5))
        ws.send(b"bytes stay bytes")
        print(ws.recv(timeout=5))
        ws.ping().wait(timeout=5)
        print("a ping came back" if ws.latency < 5 else "too late")

    with gwt.connect(f"ws://{host}:{port}/ticks/3") as ws:
        for message in ws:
            print(message)
    print("closed with", ws.close_code)
