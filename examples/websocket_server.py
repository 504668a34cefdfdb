import sys

import gwt


def pages(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"WebSockets are at /echo/<name>.\n"]


app = gwt.App(pages)


@app.websocket("/echo/<name>", max_size=65536, compression="deflate")
def echo(ws, name):
    ws.send(f"hello, {name}")
    for message in ws:
        ws.send(message)


gwt.serve(app, sys.argv[1], ready=lambda s: print(*s.address, flush=True))
