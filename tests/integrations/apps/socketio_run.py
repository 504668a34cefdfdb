"""socketio_app, run as Flask-SocketIO runs it; it prints its port."""

from gevent import monkey

monkey.patch_all()

from gwt.integrations import geventwebsocket  # noqa: E402

geventwebsocket.install()

import gevent  # noqa: E402
from socketio_app import app, socketio  # noqa: E402


def announce():
    while not getattr(socketio, "wsgi_server", None) or not socketio.wsgi_server.started:
        gevent.sleep(0.01)
    print(socketio.wsgi_server.server_port, flush=True)


gevent.spawn(announce)
socketio.run(app, host="127.0.0.1", port=0)
