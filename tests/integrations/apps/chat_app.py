"""A chat as it was written for gevent-websocket; its imports are left as they were."""

from gwt.integrations import geventwebsocket

geventwebsocket.install()

import json  # noqa: E402

from geventwebsocket import Resource, WebSocketApplication, WebSocketError  # noqa: E402
from geventwebsocket.handler import WebSocketHandler  # noqa: E402


class ChatApplication(WebSocketApplication):
    def on_open(self):
        print("somebody came", flush=True)

    def on_message(self, message):
        if message is None:
            return
        message = json.loads(message)
        if message["type"] == "name":
            self.ws.handler.active_client.nickname = message["name"]
            self.send_names()
        elif message["type"] == "say":
            self.broadcast(message)

    def send_names(self):
        clients = self.ws.handler.server.clients.values()
        names = sorted(getattr(client, "nickname", "nobody") for client in clients)
        self.ws.send(json.dumps({"type": "names", "names": names}))

    def broadcast(self, message):
        nickname = getattr(self.ws.handler.active_client, "nickname", "nobody")
        for client in list(self.ws.handler.server.clients.values()):
            client.ws.send(json.dumps({"type": "said", "by": nickname, "what": message["what"]}))

    def on_close(self, reason):
        print("somebody went:", reason, flush=True)


def echo(environ, start_response):
    ws = environ["wsgi.websocket"]
    while not ws.closed:
        message = ws.receive()
        if message is None:
            break
        ws.send(message)
    try:
        ws.receive()
    except WebSocketError as error:
        print("an OSError:", isinstance(error, OSError), flush=True)
    return []


def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"a page"]


app = Resource([("^/chat", ChatApplication), ("^/$", page)])
handler_class = WebSocketHandler
