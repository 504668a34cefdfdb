"""A Django project in one file, with a WebSocket at /ws."""

from contextlib import suppress

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

import gwt

settings.configure(
    SECRET_KEY="a secret of a test",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    },
)
django.setup()


def page(request):
    return HttpResponse("a page")


def ws(request):
    ws = request.environ["wsgi.websocket"]
    with suppress(gwt.WebSocketClosed):
        for message in ws:
            if message == "bye":
                break
            ws.send(message)
    return HttpResponse()


def private(request):
    return HttpResponse(status=401)


def broken(request):
    request.environ["wsgi.websocket"].accept()
    raise KeyError("mine")


urlpatterns = [
    path("", page),
    path("ws", ws),
    path("private", private),
    path("broken", broken),
]
app = get_wsgi_application()
