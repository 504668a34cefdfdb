"""Datagrams are small, quick and unreliable: ask again until the answer comes."""

import gwt

app = gwt.App()


@app.webtransport("/square")
def square(session):
    for data in session.incoming_datagrams():
        session.send_datagram(b"%d" % int(data) ** 2)


def ask(session, question):
    while True:
        session.send_datagram(question)
        try:
            return session.receive_datagram(timeout=0.5)
        except TimeoutError:
            print("lost, and sent again")


with gwt.Server(app, "127.0.0.1:0") as server:
    url = f"https://127.0.0.1:{server.address[1]}/square"
    with gwt.connect(url, server_certificate_hashes=[server.certificate_hash]) as session:
        print("12 squared is", ask(session, b"12").decode())
        try:
            session.send_datagram(bytes(100_000))
        except gwt.DatagramTooLarge as exc:
            print(exc.size, "bytes do not fit into a packet")
