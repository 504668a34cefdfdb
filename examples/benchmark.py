"""How long requests take, connecting included: also where one in five is refused."""

import itertools

import gwt

app = gwt.App()
asked = itertools.count(1)


@app.middleware
def busy(request):
    if next(asked) % 5 == 0:
        raise gwt.Reject(503)


@app.webtransport("/echo")
def echo(session):
    for stream in session:
        stream.write_all(stream.read_all())


def progress(done, total):
    if done == total:
        print(done, "requests are done")


with gwt.Server(app, "127.0.0.1:0") as server:
    figures = gwt.benchmark_client_performance(
        f"https://127.0.0.1:{server.address[1]}/echo",
        config=gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash]),
        num_requests=50,
        concurrent_requests=5,
        progress=progress,
    )
print(figures["successful_requests"], "of them succeeded")
for kind, count in figures["errors"].items():
    print(count, kind, figures["error_messages"][kind])
times = figures["percentiles"]
print(f"p50 {1000 * times['p50']:.1f} ms, p99 {1000 * times['p99']:.1f} ms")
