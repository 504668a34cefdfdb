"""One session, a hundred streams at a time, a greenlet for each: no stream waits for another."""

import gevent

import gwt

app = gwt.App()


@app.webtransport("/shout")
def shout(session):
    for stream in session:
        gevent.spawn(answer, stream)


def answer(stream):
    for line in iter(stream.readline, b""):
        stream.write(line.upper())
    stream.finish()


def talk(session, number):
    with session.create_bidirectional_stream() as stream:
        stream.write(b"stream %d\n" % number)
        first = stream.readline()
        stream.write(b"bye\n")
        stream.finish()
        return first + stream.read_all()


with gwt.Server(app, "127.0.0.1:0") as server:
    url = f"https://127.0.0.1:{server.address[1]}/shout"
    with gwt.connect(url, server_certificate_hashes=[server.certificate_hash]) as session:
        talks = [gevent.spawn(talk, session, number) for number in range(100)]
        answers = [each.get() for each in talks]
    print(len(answers), "streams, the last one said", answers[-1])
