"""A PooledClient: a hundred greenlets ask a server, by no more than five sessions."""

from contextlib import suppress

import gevent

import gwt

app = gwt.App()


@app.webtransport("/square")
def square(session):
    for stream in session:
        stream.write_all(str(int(stream.read_all()) ** 2).encode())


with gwt.Server(app, "127.0.0.1:0") as server:
    url = "https://{}:{}/square".format(*server.address)
    config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])

    with gwt.PooledClient(config=config, pool_size=5) as pool:

        def ask(number):
            # Waits for its turn; at the end of the block the session is the next one's.
            with pool.session(url) as session:
                stream = session.create_bidirectional_stream()
                stream.write_all(str(number).encode())
                return int(stream.read_all())

        greenlets = [gevent.spawn(ask, number) for number in range(100)]
        print("the sum of the squares is", sum(greenlet.get() for greenlet in greenlets))
        stats = pool.stats
        print(stats["connections"]["successful"], "connects,", stats["pool"]["reused"], "reused")

        # Without a block it is returned by hand.
        session = pool.get_session(url, timeout=5)
        pool.return_session(session)

        # One that an exception takes out of its block is not lent again.
        with suppress(ValueError), pool.session(url) as session:
            int("four")
        print("closed" if session.is_closed else "kept", pool.stats["pool"]["discarded"])

        # When all are out, the next one waits, here for a moment only.
        sessions = [pool.get_session(url) for _ in range(5)]
        try:
            pool.get_session(url, timeout=0.1)
        except gwt.PoolExhausted as error:
            print(str(error).partition(" came ")[2])
