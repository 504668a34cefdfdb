import sys

import gwt

app = gwt.App()


@app.webtransport("/echo")
def echo(session):
    for stream in session:
        stream.write_all(stream.read_all())


gwt.serve(app, sys.argv[1], ready=lambda s: print(*s.address, s.certificate_hash, flush=True))
