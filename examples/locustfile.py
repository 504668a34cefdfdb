"""
A load test of the demo, with users of WebSocket and of WebTransport, for Locust.

    gwt serve
    locust -f examples/locustfile.py --host http://127.0.0.1:8000 --headless -u 200 -r 50 -t 30s
"""

import os

from locust import between, task

from gwt.integrations.locust import WebSocketUser, WebTransportUser

# The demo makes a certificate of its own and prints its hash; without that it is not verified.
HASH = os.environ.get("GWT_CERTIFICATE_HASH")
TRUST = {"server_certificate_hashes": [HASH]} if HASH else {"verify": False}


class WebSocketEcho(WebSocketUser):
    path = "/echo"
    connect_options = TRUST
    wait_time = between(0.2, 1.0)

    @task(3)
    def ask(self):
        reply = self.request("hello")
        assert reply == "hello"

    @task
    def send_and_receive(self):
        self.send(b"one way", name="/echo binary")
        self.receive(name="/echo binary")


class WebTransportEcho(WebTransportUser):
    path = "/echo"
    connect_options = TRUST
    wait_time = between(0.2, 1.0)

    @task(3)
    def ask(self):
        assert self.request(b"hello") == b"hello"

    @task
    def return_a_stream(self):
        self.send(b"one way")
        self.receive()

    @task(2)
    def play(self):
        self.request_datagram(b"ping", timeout=5)

    @task
    def bring(self):
        self.upload((bytes(1000) for _ in range(20)), name="/echo 20 kB")
