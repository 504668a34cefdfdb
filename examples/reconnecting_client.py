"""A session that comes back: the server goes away and returns, and so does its client."""

import gwt

app = gwt.App()


@app.webtransport("/sum")
def sums(session):
    for stream in session:
        stream.write_all(b"%d" % sum(map(int, stream.read_all().split())))


def ask(client, question):
    # Waits while there is no session; None would be a timeout.
    session = client.get_session(wait_timeout=10)
    stream = session.create_bidirectional_stream()
    stream.write_all(question)
    return stream.read_all().decode()


server = gwt.Server(app, "127.0.0.1:0")
server.start()
address = "{}:{}".format(*server.address)
url = f"https://{address}/sum"

# The certificate is another one each time. Delays: up to 0.1 s, 0.2 s, 0.4 s, 0.5 s, 0.5 s, ...
config = gwt.ClientConfig(
    auto_reconnect=True, verify=False, max_retries=None, retry_delay=0.1, max_retry_delay=0.5
)
with gwt.WebTransportClient.create(url, config=config) as client:
    events = client.events(timeout=10)
    print(next(events).kind, "1 + 2 =", ask(client, b"1 2"))
    server.stop()
    print(next(events).kind, client.get_session(wait_timeout=0.2))
    with gwt.Server(app, address):
        print(next(events).kind, "3 + 4 =", ask(client, b"3 4"))
        client.close()
print("more events:", list(events))

# One that is gone for good is given up, with the reason.
with gwt.ReconnectingClient(url, config=config.update(max_retries=2)) as client:
    try:
        client.get_session(wait_timeout=10)
    except gwt.ClientError as error:
        print("failed", client.stats["connections"]["failed"], "times, at", error.__cause__.stage)
