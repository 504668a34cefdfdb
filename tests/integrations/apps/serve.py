"""Serve MODULE:ATTR by gevent.pywsgi, monkey-patched, with a handler that puts a WebSocket in."""

from gevent import monkey

monkey.patch_all()

import importlib  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

from gwt.integrations.pywsgi import WebSocketHandler  # noqa: E402

name, _, attribute = sys.argv[1].partition(":")
module = importlib.import_module(name)
app = getattr(module, attribute)
options = {"certfile": sys.argv[2], "keyfile": sys.argv[3]} if len(sys.argv) > 2 else {}
handler = getattr(module, "handler_class", WebSocketHandler)
server = WSGIServer(("127.0.0.1", 0), app, handler_class=handler, spawn=Pool(), **options)
server.start()
gevent.signal_handler(signal.SIGTERM, server.stop, 1)
print(server.server_port, flush=True)
server.serve_forever()
