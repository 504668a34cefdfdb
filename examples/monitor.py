"""A monitor looks at a client's figures, and says what has turned bad: once, until it is over."""

from contextlib import suppress

import gwt

app = gwt.App()


@app.webtransport("/work")
def work(session):
    session.wait_closed()


def tell(alert):
    print(alert["type"], alert["message"], sep=": ")


with gwt.Server(app, "127.0.0.1:0") as server:
    there = f"https://127.0.0.1:{server.address[1]}"
    config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
    with (
        gwt.WebTransportClient(config=config) as client,
        gwt.ClientMonitor(client, on_alert=tell) as monitor,
    ):
        for path in ["/work"] * 9 + ["/nowhere"] * 3:
            with suppress(gwt.ClientError):
                client.connect(there + path).close()
        # It looks every 30 seconds by itself; and now.
        monitor.check()
        monitor.check()
        summary = monitor.get_metrics_summary()

print(len(summary["recent_alerts"]), "alert")
print(summary["latest_metrics"]["stats"]["connections"])
