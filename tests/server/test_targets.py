"""Where tunnels may lead: entries, names, and what names resolve to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gwt
from gwt.server.targets import Targets

PUBLIC, PRIVATE, LOCAL, LINK = "93.184.215.14", "10.1.2.3", "127.0.0.1", "169.254.169.254"


@pytest.mark.parametrize(
    ("entry", "host", "port", "expected"),
    [
        ("example.com:443", "example.com", 443, True),
        ("Example.COM.:443", "example.com", 443, True),
        ("example.com:443", "example.com.", 443, True),
        ("example.com:443", "example.com", 444, False),
        ("example.com:443", "www.example.com", 443, False),
        ("example.com:*", "example.com", 1, True),
        ("*.example.com:443", "www.example.com", 443, True),
        ("*.example.com:443", "a.b.example.com", 443, True),
        ("*.example.com:443", "example.com", 443, False),
        ("*.example.com:443", ".example.com", 443, False),
        ("*.example.com:443", "badexample.com", 443, False),
        ("*:443", "anything.test", 443, True),
        ("*:443", "anything.test", 80, False),
        ("*:443", PUBLIC, 443, True),
        ("*:443", PRIVATE, 443, False),
        ("*:443", LOCAL, 443, False),
        ("*:443", "2606:2800:21f::1", 443, True),
        ("*:443", "::1", 443, False),
        ("*:443", "::ffff:127.0.0.1", 443, False),
        ("*:443", "2002:7f00:1::", 443, False),
        ("*:443", "64:ff9b::a00:1", 443, False),
        ("*:443", "0.0.0.0", 443, False),
        ("*:443", "224.0.0.1", 443, False),
        ("*:443", "255.255.255.255", 443, False),
        # What ipaddress calls global, and nobody's routers do.
        ("*:443", "::127.0.0.1", 443, False),
        ("*:443", "::ffff:0:127.0.0.1", 443, False),
        ("*:443", "64:ff9b:1::7f00:1", 443, False),
        ("*:443", "fec0::1", 443, False),
        ("*:443", "8000::1", 443, False),
        # What only clouds' machines can reach, and attackers through them.
        ("*:443", "192.0.0.192", 443, False),
        ("*:443", "168.63.129.16", 443, False),
        ("168.63.129.16:443", "168.63.129.16", 443, True),
        ("*:443", "64:ff9b::5db8:d70e", 443, True),
        ("*:443", "*", 443, True),
        ("10.0.0.0/8:443", PRIVATE, 443, True),
        ("10.0.0.0/8:443", "11.1.2.3", 443, False),
        ("10.0.0.0/8:443", "::ffff:10.1.2.3", 443, True),
        ("10.0.0.0/8:443", "example.com", 443, False),
        ("127.0.0.1:80", LOCAL, 80, True),
        ("127.0.0.1:80", "localhost", 80, False),
        ("[::1]:80", "::1", 80, True),
        ("[fd00::/8]:80", "fd12::1", 80, True),
        ("[fd00::/8]:80", "fe80::1", 80, False),
        ("169.254.0.0/16:80", LINK, 80, True),
    ],
)
def test_what_may_be_asked_for(entry, host, port, expected):
    assert Targets([entry]).asked(host, port) is expected


@pytest.mark.parametrize(
    ("entries", "host", "address", "expected"),
    [
        # A name that is listed may be inside, but not this machine, nor what only a link knows.
        (["db.test:1"], "db.test", PUBLIC, True),
        (["db.test:1"], "db.test", PRIVATE, True),
        (["db.test:1"], "db.test", "fd00::1", True),
        (["db.test:1"], "db.test", LOCAL, False),
        (["db.test:1"], "db.test", "::1", False),
        (["db.test:1"], "db.test", LINK, False),
        (["db.test:1"], "db.test", "fe80::1%2", False),
        (["db.test:1"], "db.test", "0.0.0.0", False),
        (["db.test:1"], "db.test", "::", False),
        (["db.test:1"], "db.test", "::ffff:127.0.0.1", False),
        (["db.test:1"], "db.test", "64:ff9b::7f00:1", False),
        (["db.test:1"], "db.test", "168.63.129.16", False),
        (["db.test:1"], "db.test", "fd00:ec2::254", False),
        (["db.test:1"], "db.test", "100.100.100.200", False),
        # A network that has nothing but a translator to IPv4.
        (["db.test:1"], "db.test", "64:ff9b::5db8:d70e", True),
        (["db.test:1"], "db.test", "64:ff9b::a01:203", True),
        (["localhost:1"], "localhost", LOCAL, True),
        (["localhost:1"], "localhost", "::1", True),
        (["localhost:1"], "localhost", LINK, False),
        (["app.localhost:1"], "app.localhost", LOCAL, True),
        # One that is not must be outside.
        (["*.test:1"], "db.test", PUBLIC, True),
        (["*.test:1"], "db.test", PRIVATE, False),
        (["*:1"], "db.test", PRIVATE, False),
        (["*:1"], "db.test", LOCAL, False),
        (["*:1"], "localhost", LOCAL, False),
        (["*:1"], "db.test", "100.64.0.1", False),
        (["*:1"], "db.test", "fd00::1", False),
        # Wildcards are what entries are; as names they are as good as others.
        (["*:1"], "*", PRIVATE, False),
        (["*.test:1"], "*.test", PRIVATE, False),
        (["*.test:1"], "*.test.", PRIVATE, False),
        (["*.test:1"], "*.test", PUBLIC, True),
        # Unless the address is listed, too, for that port.
        (["*:1", "10.0.0.0/8:1"], "db.test", PRIVATE, True),
        (["*:1", "10.0.0.0/8:2"], "db.test", PRIVATE, False),
        (["*:1", "127.0.0.1:*"], "db.test", LOCAL, True),
        (["db.test:1"], "db.test", "no address", False),
    ],
)
def test_what_a_name_may_lead_to(entries, host, address, expected):
    assert Targets(entries).reaches(host, 1, address) is expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("*:1", False), ("*.test:1", False), ("db.test:1", True), (f"{PUBLIC}:1", True)],
)
def test_what_leads_to_our_own_public_address(entry, expected):
    assert Targets([entry]).reaches("db.test", 1, PUBLIC, ours=True) is expected


def test_no_entries_are_no_targets():
    assert not Targets([])
    assert not Targets([]).asked("example.com", 443)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "example.com",
        ":80",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:http",
        "example.com:-1",
        "::1:80",
        "[::1:80",
        "[example.com]:80",
        "10.0.0.1/8:80",
        "10.0.0.0/33:80",
        "a.*.test:80",
        "*.:80",
        "**:80",
        "fd00::/8:80",
    ],
)
def test_a_bad_entry_is_refused_when_the_server_is_made(entry):
    with pytest.raises(gwt.ConfigError, match="connect_targets") as caught:
        gwt.Server(gwt.App(), connect_targets=[entry])
    assert caught.value.field == "connect_targets"


@pytest.mark.parametrize("value", ["example.com:80", 5, [5], ["ä:1"]])
def test_targets_are_a_list_of_texts(value):
    with pytest.raises(gwt.ConfigError) as caught:
        gwt.ServerConfig(connect_targets=value)
    assert caught.value.field == "connect_targets"


ADDRESSES = st.one_of(
    st.ip_addresses().map(str), st.from_regex(r"[0-9a-fx.:%]{0,40}"), st.text(max_size=40)
)


@given(host=ADDRESSES, address=ADDRESSES, port=st.integers(1, 65535))
def test_nothing_raises_and_more_entries_let_more_through(host, address, port):
    some, more = Targets(["*:*"]), Targets(["*:*", "0.0.0.0/0:*"])
    assert not some.asked(host, port) or more.asked(host, port)
    assert not some.reaches(host, port, address) or more.reaches(host, port, address)
