"""Who may come in: pages of other origins may not, and a middleware asks for a token."""

import gwt

app = gwt.App()


@app.middleware
def only_with_token(request):
    if request.query.get("token") != "let-me-in":
        raise gwt.Reject(401, {"www-authenticate": "token"})


@app.webtransport("/chat/<room>", origins=["https://friends.example"])
def chat(session, room):
    with session.create_unidirectional_stream() as stream:
        stream.write(f"welcome to {room}".encode())


def visit(path, **options):
    url = f"https://127.0.0.1:{server.address[1]}{path}"
    options["server_certificate_hashes"] = [server.certificate_hash]
    try:
        with gwt.connect(url, **options) as session:
            return session.accept_stream().read_all().decode()
    except gwt.SessionRejected as exc:
        return f"rejected with status {exc.status}"


with gwt.Server(app, "127.0.0.1:0") as server:
    print("no token:", visit("/chat/tea"))
    print("a token:", visit("/chat/tea?token=let-me-in"))
    print("a friend:", visit("/chat/tea?token=let-me-in", origin="https://friends.example"))
    print("a stranger:", visit("/chat/tea?token=let-me-in", origin="https://other.example"))
    print("nowhere:", visit("/nowhere?token=let-me-in"))
