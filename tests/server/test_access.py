"""Who may ask: tables."""

from __future__ import annotations

import pytest

from gwt.server.access import host_allowed, origin_allowed


@pytest.mark.parametrize(
    ("origin", "authority", "allowed"),
    [
        (None, "example.com", True),
        ("https://example.com", "example.com", True),
        ("http://EXAMPLE.com", "example.COM:443", True),
        ("https://example.com:80", "example.com:443", True),
        ("https://example.com:8443", "example.com:8443", True),
        ("https://example.com:8443", "example.com", False),
        ("https://example.com.", "example.com", True),
        ("https://sub.example.com", "example.com", False),
        ("https://example.com.evil.example", "example.com", False),
        ("https://user@example.com", "example.com", False),
        ("https://example.com/path", "example.com", False),
        ("null", "example.com", False),
        ("", "example.com", False),
        ("example.com", "example.com", False),
        ("https://", "example.com", False),
        ("https://[", "example.com", False),
        ("https://a:b", "a:b", False),
        ("http://localhost:8000", "127.0.0.1:8000", True),
        ("http://[::1]:8000", "localhost:8000", True),
        ("http://127.9.9.9:8000", "localhost:8000", True),
        ("http://app.localhost:8000", "localhost:8000", True),
        ("http://localhost:8000", "localhost:8001", False),
        ("http://localhost", "example.com", False),
        ("http://0.0.0.0:8000", "127.0.0.1:8000", False),
    ],
)
def test_an_origin_must_be_the_servers_own(origin, authority, allowed):
    assert origin_allowed(origin, authority) is allowed


@pytest.mark.parametrize(
    ("origin", "origins", "allowed"),
    [
        ("https://a.example", "*", True),
        ("https://a.example", ["*"], True),
        ("https://a.example", "https://a.example", True),
        ("https://A.example/", ["https://a.example"], True),
        ("http://a.example", ["https://a.example"], False),
        ("https://a.example:8443", ["https://a.example"], False),
        ("null", ["null"], True),
        ("https://server.example", ["https://a.example"], True),
    ],
)
def test_a_list_widens_it(origin, origins, allowed):
    assert origin_allowed(origin, "server.example", origins) is allowed


@pytest.mark.parametrize(
    ("authority", "hosts", "allowed"),
    [
        ("anything", None, True),
        ("example.com:8000", ["example.com"], True),
        ("EXAMPLE.com.", ["example.COM"], True),
        ("evil.example", ["example.com"], False),
        ("a.example.com", [".example.com"], True),
        ("example.com", [".example.com"], True),
        ("notexample.com", [".example.com"], False),
        ("[::1]:8000", ["::1"], True),
        ("[::1]:8000", ["[::1]"], True),
        ("anything", ["*"], True),
        ("", ["example.com"], False),
        ("[", ["example.com"], False),
        ("anything", [], False),
    ],
)
def test_hosts_guard_against_rebinding(authority, hosts, allowed):
    assert host_allowed(authority, hosts) is allowed
