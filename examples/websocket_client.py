"""What a client of WebSockets meets: a login that redirects, a refusal, a server that is silent."""

import gevent

import gwt

app = gwt.App()


@app.middleware
def check(request):
    if request.path == "/login":
        if request.headers.get("authorization") is None:
            raise gwt.Reject(401, {"WWW-Authenticate": "Basic"}, b"who are you?")
        raise gwt.Reject(303, {"Location": "/feed", "Set-Cookie": "session=abc; HttpOnly"})
    if request.path == "/silence":
        gevent.sleep(60)
    if request.headers.get("cookie") != "session=abc":
        raise gwt.Reject(403)


@app.websocket("/login")
@app.websocket("/feed")
@app.websocket("/silence")
def feed(ws):
    ws.send(f"news in {ws.subprotocol}")


with gwt.Server(app, "127.0.0.1:0", http3=False, subprotocols=["json"]) as server:
    place = "{}:{}".format(*server.address)

    # The user and the password are sent as Basic authorization, the cookie to where it leads.
    with gwt.connect(f"ws://user:password@{place}/login", subprotocols=["json"]) as ws:
        print(ws.path, ws.recv(timeout=5))

    try:
        gwt.connect(f"ws://{place}/login")
    except gwt.SessionRejected as error:
        print(error.status, error.headers["www-authenticate"], error.body.decode())

    with gwt.connect(f"ws://{place}/feed", cookies={"session": "abc"}) as ws:
        print(ws.path, ws.recv(timeout=5))

    try:
        gwt.connect(f"ws://{place}/silence", timeout=0.2)
    except TimeoutError as error:
        print(str(error).partition("timed out ")[2])
