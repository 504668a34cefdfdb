"""Send a file over a stream. A slow reader slows the writer down: neither holds it in memory."""

import hashlib
import shutil
import sys

import gwt

app = gwt.App()


@app.webtransport("/upload")
def receive(session):
    stream = session.accept_bidirectional_stream()
    digest = hashlib.sha256()
    for data in stream:
        digest.update(data)
    stream.write_all(digest.hexdigest().encode())
    session.wait_closed()


def send(session, path):
    stream = session.create_bidirectional_stream()
    with open(path, "rb") as file, stream.makefile("wb") as target:
        shutil.copyfileobj(file, target)
    return stream.read_all().decode()


path = sys.argv[1] if len(sys.argv) > 1 else __file__
with gwt.Server(app, "127.0.0.1:0") as server:
    url = f"https://127.0.0.1:{server.address[1]}/upload"
    with gwt.connect(url, server_certificate_hashes=[server.certificate_hash]) as session:
        print(send(session, path), path)
