"""An old WSGI application and WebTransport on one port: TCP serves the one, UDP the other."""

from urllib.request import urlopen

import gevent

import gwt

visits = []


def pages(environ, start_response):
    # Flask, Django, anything that speaks WSGI, goes here as it is.
    visits.append(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"an ordinary page\n"]


app = gwt.App(pages)


@app.webtransport("/visits")
def count(session):
    # The same process: what the pages know is at hand.
    with session.create_unidirectional_stream() as stream:
        stream.write(b"%d visits so far" % len(visits))


with gwt.Server(app, "127.0.0.1:0") as server:
    host, port = server.address
    # In a thread, because urllib blocks a process that is not monkey-patched.
    threads = gevent.get_hub().threadpool
    for path in ("/", "/about"):
        with threads.apply(urlopen, (f"http://{host}:{port}{path}",)) as response:
            print(path, response.status, threads.apply(response.read).decode().strip())
    url = f"https://{host}:{port}/visits"
    with gwt.connect(url, server_certificate_hashes=[server.certificate_hash]) as session:
        print(session.accept_stream().read_all().decode())
