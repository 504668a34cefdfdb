"""A proxy that lets its clients reach one web server, and a greenlet that goes through it."""

from gevent.pywsgi import WSGIServer

import gwt


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello from the inside"]


inside = WSGIServer(("127.0.0.1", 0), hello, log=None)
inside.start()
target = f"127.0.0.1:{inside.server_port}"

app = gwt.App()


@app.middleware
def check(request):
    # "me" and "secret", as HTTP has it.
    if request.headers.get("proxy-authorization") != "Basic bWU6c2VjcmV0":
        raise gwt.Reject(407, {"Proxy-Authenticate": 'Basic realm="proxy"'})


with gwt.Server(app, "127.0.0.1:0", connect_targets=[target]) as server:
    host, port = server.address
    config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])

    with gwt.WebTransportProxy(f"https://me:secret@{host}:{port}", config=config) as proxy:
        with proxy.connect_through_proxy(target) as tunnel:
            # What the web server says and hears, byte for byte.
            tunnel.write(b"GET / HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n\r\n")
            answer = tunnel.makefile("rb")
            print(answer.readline().decode().strip())
            while answer.readline().strip():
                pass
            print(answer.read().decode())

        try:
            proxy.connect_through_proxy("example.com:443")
        except gwt.ClientError as error:
            print(error.__cause__.status, error.__cause__.headers["proxy-status"])

    with gwt.WebTransportProxy(f"https://{host}:{port}", config=config) as proxy:
        try:
            proxy.connect_through_proxy(target)
        except gwt.ClientError as error:
            print(error.__cause__.status, error.__cause__.headers["proxy-authenticate"])

inside.stop()
