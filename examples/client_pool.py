"""A ClientPool: clients with configurations of their own, one after the other, and all at once."""

import gwt

app = gwt.App()


@app.middleware
def check(request):
    if request.headers["user-agent"] == "carol":
        raise gwt.Reject(403)


@app.websocket("/whoami")
def whoami(ws):
    ws.send(f"you are {ws.headers['user-agent']}")
    ws.wait_closed()


with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
    url = "ws://{}:{}/whoami".format(*server.address)
    names = ["ann", "bob", "carol"]
    with gwt.ClientPool([gwt.ClientConfig(user_agent=name) for name in names[:2]]) as pool:
        for _ in range(3):
            with pool.get_client().connect(url) as ws:
                print(ws.recv(timeout=5))

    with gwt.ClientPool([gwt.ClientConfig(user_agent=name) for name in names]) as pool:
        # Those that succeed; with raise_on_error=True it is all, or an ExceptionGroup.
        print("connected:", [ws.recv(timeout=5) for ws in pool.connect_all(url)])
        try:
            pool.connect_all(url, raise_on_error=True)
        except* gwt.ClientError as group:
            print("failed:", [str(error.__cause__) for error in group.exceptions])
        connections = pool.stats["connections"]
        print(f"{connections['successful']} of {connections['attempted']} connects succeeded")
