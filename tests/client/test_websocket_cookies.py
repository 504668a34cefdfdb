"""What a WebSocket's request carries about its user: cookies, passwords, and to whom."""

from __future__ import annotations

from http.cookiejar import CookieJar

import gevent.socket
import pytest

import gwt
from gwt.client.cookies import Cookies
from gwt.client.target import parse_url
from tests.helpers.websockets import answering, redirect, switched


def header(request: str, name: str) -> str | None:
    """The value of a header that occurs at most once."""
    lines = (line.partition(": ") for line in request.split("\r\n")[1:])
    found = [value for key, _, value in lines if key.lower() == name.lower()]
    assert len(found) <= 1
    return found[0] if found else None


def setting(*cookies: str, location: str = "/next") -> bytes:
    lines = "".join(f"Set-Cookie: {cookie}\r\n" for cookie in cookies)
    return redirect(location).replace(b"Content-Length", lines.encode() + b"Content-Length", 1)


class TestCookies:
    def test_are_given_by_name(self):
        with answering(switched) as (base, asked):
            gwt.connect(
                base, cookies={"a": "1", "b": "two words"}, headers={"Cookie": "c=3"}
            ).close()
        assert header(asked[0], "Cookie") == "c=3; a=1; b=two words"

    def test_set_on_the_way_are_sent_on(self):
        first = setting("login=yes; Path=/; HttpOnly", "elsewhere=1; Path=/other", "a=new")
        with answering(first, switched) as (base, asked):
            gwt.connect(base, cookies={"a": "old", "b": "1"}).close()
        assert header(asked[0], "Cookie") == "a=old; b=1"
        sent = header(asked[1], "Cookie")
        assert sorted(sent.split("; ")) == ["a=new", "b=1", "login=yes"]

    def test_given_for_one_place_stay_there(self):
        with answering(switched) as (there, second), answering(redirect(there)) as (here, first):
            gwt.connect(here, cookies={"a": "1"}).close()
        assert header(first[0], "Cookie") == "a=1"
        assert header(second[0], "Cookie") is None

    def test_are_kept_in_a_jar_of_the_callers(self):
        jar = CookieJar()
        accepted = b"101 Switching Protocols\r\nSet-Cookie: session=s\r\n"

        def accept(request: str) -> bytes:
            return switched(request).replace(b"101 Switching Protocols\r\n", accepted)

        with answering(accept, switched) as (base, asked):
            gwt.connect(base, cookies=jar).close()
            gwt.connect(base, cookies=jar).close()
        assert header(asked[0], "Cookie") is None
        assert header(asked[1], "Cookie") == "session=s"

    @pytest.mark.parametrize(
        ("cookie", "url", "sent"),
        [
            ("a=1", "wss://here.test/", True),
            ("a=1", "wss://sub.here.test/", False),
            ("a=1; Domain=here.test", "wss://sub.here.test/", True),
            ("a=1; Domain=other.test", "wss://other.test/", False),
            ("a=1; Domain=test", "wss://other.test/", False),
            ("a=1; Secure", "wss://here.test/", True),
            ("a=1; Secure", "ws://here.test/", False),
            ("a=1; Path=/x", "wss://here.test/x/y", True),
            ("a=1; Path=/x", "wss://here.test/y", False),
            ("a=1; Max-Age=0", "wss://here.test/", False),
        ],
    )
    def test_go_where_they_belong(self, cookie, url, sent):
        schemes = {"ws": 80, "wss": 443}
        cookies = Cookies(None)
        cookies.keep(parse_url("wss://here.test/x", schemes), [("Set-Cookie", cookie)])
        assert cookies.header(parse_url(url, schemes), None) == ("a=1" if sent else None)

    @pytest.mark.parametrize(
        "cookies", ["a=1", 5, {"a;": "1"}, {"a": "1;b=2"}, {"a": "\r\nX: y"}, {"a": 1}, {"": "1"}]
    )
    def test_that_cannot_be_sent(self, cookies):
        with pytest.raises(gwt.ConfigError) as caught:
            gwt.connect("ws://name.test/", cookies=cookies)
        assert caught.value.field == "cookies"


class TestPasswords:
    def test_of_the_url_become_basic_authorization(self):
        with answering(redirect("/again"), switched) as (base, asked):
            gwt.connect(base.replace("//", "//us%40er:p%3Aw@")).close()
        for request in asked:
            assert header(request, "Authorization") == "Basic dXNAZXI6cDp3"
            assert header(request, "Host") == base[5:]

    def test_yield_to_a_header(self):
        with answering(switched) as (base, asked):
            headers = {"authorization": "Bearer x"}
            gwt.connect(base.replace("//", "//user:pw@"), headers=headers).close()
        assert header(asked[0], "Authorization") == "Bearer x"

    def test_are_not_told_to_others(self):
        with answering(switched) as (there, second), answering(redirect(there)) as (here, _):
            gwt.connect(here.replace("//", "//user:pw@")).close()
        assert header(second[0], "Authorization") is None

    @pytest.mark.parametrize(
        "url", ["ws://user:secret@127.0.0.1:1", "ws://u:secret@h:99999/", "w://u:secret@h/"]
    )
    def test_are_not_in_messages(self, url):
        with pytest.raises((gwt.ConfigError, gwt.HandshakeError)) as caught:
            gwt.connect(url)
        error: BaseException | None = caught.value
        while error is not None:
            assert "secret" not in f"{error} {error!r} {vars(error)}"
            error = error.__cause__

    def test_are_not_in_the_messages_of_timeouts(self):
        silent = pytest.raises(TimeoutError, match=r"//\*\*\*@127")
        with answering(None) as (base, _), silent as caught:
            gwt.connect(base.replace("//", "//user:secret@"), timeout=0.05)
        assert "secret" not in str(caught.value)


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_of_every_kind_are_followed(self, status):
        with answering(redirect("next?x=1#fragment", status), switched) as (base, asked):
            assert gwt.connect(f"{base}/a/b").path == "/a/next"
        assert asked[1].startswith("GET /a/next?x=1 HTTP/1.1")

    @pytest.mark.parametrize("status", [300, 304, 305])
    def test_that_are_none(self, status):
        rejected = pytest.raises(gwt.SessionRejected)
        with answering(redirect("/next", status)) as (base, _), rejected as caught:
            gwt.connect(base)
        assert caught.value.status == status

    def test_have_a_limit(self):
        with answering(*[redirect("/x")] * 3) as (base, asked):
            with pytest.raises(
                gwt.HandshakeError, match=r"more than 2 times, at last from .* '/x'"
            ):
                gwt.connect(base, max_redirects=2)
            assert len(asked) == 3

    def test_can_be_refused(self):
        with answering(redirect("/x")) as (base, _), pytest.raises(gwt.SessionRejected) as caught:
            gwt.connect(base, max_redirects=0)
        assert (caught.value.status, caught.value.headers["location"]) == (302, "/x")

    @pytest.mark.parametrize("limit", [None, True, 1.5, "3", -1])
    def test_have_a_limit_that_is_a_number(self, limit):
        with pytest.raises(gwt.ConfigError):
            gwt.connect("ws://name.test/", max_redirects=limit)

    def test_do_not_lead_away_from_a_given_socket(self):
        with answering(redirect("/x")) as (base, _):
            host, port = base[5:].split(":")
            sock = gevent.socket.create_connection((host, int(port)))
            with pytest.raises(gwt.HandshakeError, match="sock="):
                gwt.connect("ws://name.test/", sock=sock)
