"""A WebTransportClient: one configuration and headers for all connects, and what came of them."""

import gwt

app = gwt.App()


@app.webtransport("/hello")
def hello(session):
    who = session.headers.get("x-name", "stranger")
    session.create_unidirectional_stream().write_all(f"hello {who}".encode())
    session.wait_closed()


with gwt.Server(app, "127.0.0.1:0") as server:
    url = "https://{}:{}".format(*server.address)
    config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
    with gwt.WebTransportClient.create(url, config=config) as client:
        client.set_default_headers({"x-name": "ann"})
        for headers in ({}, {"x-name": "bob"}):
            with client.connect(f"{url}/hello", headers=headers) as session:
                print(session.accept_stream().read_all().decode())
        try:
            client.connect(f"{url}/nobody")
        except gwt.ClientError as error:
            print("failed:", error.__cause__)

        # The figures are those of a ClientStats.
        figures = client.stats["connections"]
        print(f"{figures['successful']} of {figures['attempted']} connects succeeded")
        print("issues:", client.diagnose_issues())
