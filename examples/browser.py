"""Going through a site: one session at a time, and a history that survives a dead link."""

import gwt

app = gwt.App()


@app.webtransport("/<page>")
def show(session, page):
    for stream in session:
        stream.read_all()
        stream.write_all(f"this is {page}".encode())


@app.middleware
def links(request):
    if request.path == "/dead":
        raise gwt.Reject(404)


def read(session):
    stream = session.create_bidirectional_stream()
    stream.write_all(b"?")
    return stream.read_all().decode()


with gwt.Server(app, "127.0.0.1:0") as server:
    site = "https://{}:{}".format(*server.address)
    config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
    with gwt.WebTransportBrowser(config=config) as browser:
        for page in ("home", "news", "sport"):
            print(read(browser.navigate(f"{site}/{page}")))
        print("back:", read(browser.back()))
        try:
            browser.navigate(f"{site}/dead")
        except gwt.ClientError as error:
            print("dead:", error.__cause__.status)
        print("still here:", read(browser.current_session))
        print("forward:", read(browser.forward()), "- and then", browser.forward())
        print([url.removeprefix(site) for url in browser.get_history()])
