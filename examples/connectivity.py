"""What is wrong with a server? Each question is answered by a stage and a sentence."""

import socket

import gwt

app = gwt.App()


@app.webtransport("/work")
def work(session):
    session.wait_closed()


def ask(what, url, **options):
    result = gwt.test_client_connectivity(url, config=gwt.ClientConfig(**options), timeout=5)
    if result["success"]:
        details = result["details"]
        print(f"{what}: {details['protocol']}, draft {details['draft']}, {details['tls']}")
    else:
        print(f"{what}: {result['stage']} failed. {result['reason']}")


with gwt.Server(app, "127.0.0.1:0") as server:
    port = server.address[1]
    trust = {"server_certificate_hashes": [server.certificate_hash]}
    ask("as it should be", f"https://127.0.0.1:{port}/work", **trust)
    ask("another path", f"https://127.0.0.1:{port}/nowhere", **trust)
    ask("not trusted", f"https://127.0.0.1:{port}/work")
    ask("no TLS there", f"wss://127.0.0.1:{port}/work")
    ask("no such name", f"https://server.invalid:{port}/work")

with socket.socket() as tcp:
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    ask("TCP alone", f"https://127.0.0.1:{tcp.getsockname()[1]}/work")
