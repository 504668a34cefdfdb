"""The same with python-engineio's driver for gevent-websocket, which gwt answers for."""

from gwt.integrations import geventwebsocket

geventwebsocket.install()

from engineio.async_drivers import gevent as driver  # noqa: E402
from socketio_app import app  # noqa: E402

# It chose when it was imported.
assert driver.SimpleWebSocketWSGI is None

handler_class = geventwebsocket.WebSocketHandler

__all__ = ["app", "handler_class"]
